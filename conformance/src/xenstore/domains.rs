//! Requests about domains.

use super::*;

cases! {
    needs [Store];

    "xenstore.domain-path.own" = own {
        title: "the own home directory",
        rule: "GET_DOMAIN_PATH gives /local/domain/DOMID with a NUL.",
        source: "docs/misc/xenstore.txt, GET_DOMAIN_PATH",
    }
    "xenstore.domain-path.other" = other {
        title: "dom0's, and that of a domain that is not there",
        rule: "GET_DOMAIN_PATH gives the base path of any number that is a real domain id, whether there is one or not.",
        source: "docs/misc/xenstore.txt, GET_DOMAIN_PATH",
    }
    "xenstore.domain-path.normalised" = normalised {
        title: "a number with zeros in front",
        rule: "GET_DOMAIN_PATH normalises the number.",
        source: "docs/misc/xenstore.txt, GET_DOMAIN_PATH",
    }
    "xenstore.introduced.self" = introduced_self {
        title: "the own domain",
        rule: "IS_DOMAIN_INTRODUCED gives T and a NUL if xenstored is in communication with the domain.",
        source: "docs/misc/xenstore.txt, IS_DOMAIN_INTRODUCED",
    }
    "xenstore.introduced.nobody" = introduced_nobody {
        title: "a domain that is not there",
        rule: "IS_DOMAIN_INTRODUCED gives F and a NUL for a domain without a connection.",
        source: "docs/misc/xenstore.txt, IS_DOMAIN_INTRODUCED",
    }
    "xenstore.privileged.introduce" = introduce {
        title: "INTRODUCE from a guest",
        rule: "Xenstored prevents the use of INTRODUCE other than by dom0.",
        source: "docs/misc/xenstore.txt, INTRODUCE",
        also: [DomU],
    }
    "xenstore.privileged.release" = release {
        title: "RELEASE of itself from a guest",
        rule: "Xenstored prevents the use of RELEASE other than by dom0.",
        source: "docs/misc/xenstore.txt, RELEASE",
        also: [DomU],
    }
    "xenstore.privileged.resume" = resume {
        title: "RESUME from a guest",
        rule: "Xenstored prevents the use of RESUME other than by dom0.",
        source: "docs/misc/xenstore.txt, RESUME",
        also: [DomU],
    }
    "xenstore.privileged.set-target" = set_target {
        title: "SET_TARGET to dom0 from a guest",
        rule: "Xenstored prevents the use of SET_TARGET other than by dom0: it would give full access to all.",
        source: "docs/misc/xenstore.txt, SET_TARGET",
        also: [DomU],
    }
    "xenstore.privileged.control" = control {
        title: "CONTROL from a guest",
        rule: "A guest cannot control the daemon: the request is refused, or answered with nothing and without effect.",
        source: "docs/misc/xenstore.txt, CONTROL",
        also: [DomU],
    }
}

async fn path_of(store: &mut Store, domid: &str) -> Verdict<Answer> {
    store.ask(XS_GET_DOMAIN_PATH, 0, &nul(domid)).await
}

async fn own(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    ensure_eq!(path_of(store, &me).await?, Ok(nul(&format!("/local/domain/{me}"))), "the path");
    Ok(())
}

async fn other(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    ensure_eq!(path_of(store, "0").await?, Ok(nul("/local/domain/0")), "dom0's path");
    ensure_eq!(path_of(store, "32000").await?, Ok(nul("/local/domain/32000")), "nobody's path");
    Ok(())
}

async fn normalised(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    ensure_eq!(path_of(store, "0007").await?, Ok(nul("/local/domain/7")), "the path");
    Ok(())
}

/// Asks whether `domid` is introduced; some daemons answer only dom0.
async fn is_introduced(store: &mut Store, domid: &str) -> Verdict<Answer> {
    let answer = store.ask(XS_IS_DOMAIN_INTRODUCED, 0, &nul(domid)).await?;
    require!(answer != Err(Errno::EACCES), "the daemon tells this to dom0 alone");
    Ok(answer)
}

async fn introduced_self(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let me = own_id(store).await?;
    ensure_eq!(is_introduced(store, &me).await?, Ok(nul("T")), "the answer");
    Ok(())
}

async fn introduced_nobody(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    ensure_eq!(is_introduced(store, "32000").await?, Ok(nul("F")), "the answer");
    Ok(())
}

/// Checks that the daemon refuses a request that only dom0 may make, and that the connection still works.
async fn denied(env: &mut Env, kind: u32, payload: &[u8]) -> Verdict {
    let store = fresh(env).await?;
    refused_somehow(store.ask(kind, 0, payload).await?, "the request")?;
    holds(store, BASE, "").await
}

async fn introduce(env: &mut Env) -> Verdict {
    denied(env, XS_INTRODUCE, &list(&["31999", "1", "1"])).await
}

async fn release(env: &mut Env) -> Verdict {
    let me = own_id(env.store()?).await?;
    denied(env, XS_RELEASE, &nul(&me)).await?;
    denied(env, XS_RELEASE, &nul("0")).await
}

async fn resume(env: &mut Env) -> Verdict {
    let me = own_id(env.store()?).await?;
    denied(env, XS_RESUME, &nul(&me)).await
}

async fn set_target(env: &mut Env) -> Verdict {
    let me = own_id(env.store()?).await?;
    denied(env, XS_SET_TARGET, &list(&[&me, "0"])).await?;
    let errors = [Errno::EACCES, Errno::EPERM, Errno::ENOENT];
    let store = env.store()?;
    refused(store.write("/local/domain/0/conformance", "x").await?, &errors, "a write in dom0's home")
}

async fn control(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for payload in [nul("help"), list(&["print", "conformance"]), list(&["quota"])] {
        if let Ok(said) = store.ask(XS_CONTROL, 0, &payload).await? {
            ensure!(said.is_empty() || said == [0] || said == b"OK\0", "the daemon says {said:?}");
        }
    }
    holds(store, BASE, "").await
}
