//! Which paths are valid.

use alloc::string::String;

use super::*;

cases! {
    needs [Store];

    "xenstore.path.legal-characters" = legal {
        title: "each character that a path may have",
        rule: "Permitted are ASCII alphanumerics and the four characters hyphen, slash, underscore, atsign.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.illegal-punctuation" = illegal_punctuation {
        title: "other printable characters",
        rule: "A path with another character is refused with EINVAL.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.illegal-octets" = illegal_octets {
        title: "control characters and octets over 127",
        rule: "A path with another character is refused with EINVAL.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.empty" = empty {
        title: "the empty path",
        rule: "The empty path is forbidden.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.trailing-slash" = trailing_slash {
        title: "a slash at the end",
        rule: "Trailing slashes, except to specify the root, are forbidden.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.doubled-slash" = doubled_slash {
        title: "two slashes together",
        rule: "Doubled slashes are forbidden.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.root" = root {
        title: "the root by its name",
        rule: "A slash alone specifies the root.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.no-dots" = no_dots {
        title: "dots do not climb",
        rule: "A full stop is no permitted character, so that no path leads up.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.long-relative" = long_relative {
        title: "a relative path of some 1000 bytes",
        rule: "Relative paths may have up to XENSTORE_REL_PATH_MAX bytes.",
        source: "io/xs_wire.h, XENSTORE_REL_PATH_MAX",
    }
    "xenstore.path.too-long-absolute" = too_long_absolute {
        title: "an absolute path of 3073 bytes",
        rule: "Paths longer than XENSTORE_ABS_PATH_MAX get an error back.",
        source: "io/xs_wire.h, XENSTORE_ABS_PATH_MAX",
    }
    "xenstore.path.too-long-relative" = too_long_relative {
        title: "a relative path of 3072 bytes",
        rule: "A path longer than XENSTORE_ABS_PATH_MAX, its base included, gets an error back.",
        source: "io/xs_wire.h, XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX",
    }
    "xenstore.path.all-requests-check" = all_requests {
        title: "a bad path in each request that takes one",
        rule: "Forbidden paths are forbidden in every request.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.common-start" = common_start {
        title: "names of which one begins the other",
        rule: "A path is a child of another if that and a slash begin it: a/bc is not below a/b.",
        source: "docs/misc/xenstore.txt, introduction",
    }
    "xenstore.path.special-is-no-node" = special {
        title: "reading and writing @releaseDomain",
        rule: "Names that begin with an atsign specify special watches, and are no nodes.",
        source: "docs/misc/xenstore.txt, introduction, WATCH",
    }
}

async fn legal(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for name in [
        "abcdefghijklm",
        "nopqrstuvwxyz",
        "ABCDEFGHIJKLM",
        "NOPQRSTUVWXYZ",
        "0123456789",
        "a-b",
        "a_b",
        "a@b",
    ] {
        put(store, &at(name), name).await?;
        holds(store, &at(name), name).await?;
    }
    Ok(())
}

async fn is_invalid(store: &mut Store, path: &[u8]) -> Verdict {
    let payload = [path, &[0]].concat();
    let shown = String::from_utf8_lossy(path).into_owned();
    refused(store.ask(XS_READ, 0, &payload).await?, &[Errno::EINVAL], &format!("read of {shown:?}"))?;
    let write = [&payload[..], b"x"].concat();
    refused(store.ask(XS_WRITE, 0, &write).await?, &[Errno::EINVAL], &format!("write of {shown:?}"))
}

async fn illegal_punctuation(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for character in " !\"#$%&'()*+,.:;<=>?[\\]^`{|}~".chars() {
        is_invalid(store, at(&format!("a{character}b")).as_bytes()).await?;
    }
    Ok(())
}

async fn illegal_octets(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for octet in [1, 9, 10, 13, 31, 127, 128, 160, 255] {
        let mut path = at("a").into_bytes();
        path.push(octet);
        is_invalid(store, &path).await?;
    }
    Ok(())
}

async fn empty(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    is_invalid(store, b"").await
}

async fn trailing_slash(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a"), "x").await?;
    is_invalid(store, at("a/").as_bytes()).await?;
    holds(store, &at("a"), "x").await
}

async fn doubled_slash(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    put(store, &at("a/b"), "x").await?;
    is_invalid(store, at("a//b").as_bytes()).await?;
    is_invalid(store, b"//local").await
}

async fn root(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    match store.directory("/").await? {
        Ok(children) => {
            ensure!(children.iter().any(|name| name == "local"), "the root's children: {children:?}")
        }
        Err(error) => ensure_eq!(error, Errno::EACCES, "the directory of the root"),
    }
    Ok(())
}

async fn no_dots(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    is_invalid(store, at("..").as_bytes()).await?;
    is_invalid(store, at("../name").as_bytes()).await?;
    is_invalid(store, at("./a").as_bytes()).await
}

async fn long_relative(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let path = at(&["component-of-some-length"; 39].join("/"));
    put(store, &path, "deep").await?;
    holds(store, &path, "deep").await
}

async fn too_long_absolute(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let id = own_id(store).await?;
    let mut path = format!("/local/domain/{id}/{}", at("a"));
    while path.len() <= XENSTORE_ABS_PATH_MAX {
        path.push_str(if path.len().is_multiple_of(100) && path.len() < XENSTORE_ABS_PATH_MAX {
            "/"
        } else {
            "a"
        });
    }
    refused_somehow(store.write(&path, "x").await?, "a write to a path of 3073 bytes")?;
    holds(store, BASE, "").await?;
    ensure_eq!(store.directory(BASE).await?.map(|names| names.len()), Ok(0), "children that were left");
    Ok(())
}

async fn too_long_relative(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let mut path = at("a");
    while path.len() < XENSTORE_ABS_PATH_MAX {
        path.push_str(if path.len().is_multiple_of(100) && path.len() + 1 < XENSTORE_ABS_PATH_MAX {
            "/"
        } else {
            "a"
        });
    }
    refused_somehow(store.write(&path, "x").await?, "a write to a relative path of 3072 bytes")?;
    ensure_eq!(store.directory(BASE).await?.map(|names| names.len()), Ok(0), "children that were left");
    Ok(())
}

async fn all_requests(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    let path = at("a b");
    let me = own_id(store).await?;
    let perm = format!("n{me}");
    for (what, kind, payload) in [
        ("directory", XS_DIRECTORY, list(&[&path])),
        ("read", XS_READ, list(&[&path])),
        ("get_perms", XS_GET_PERMS, list(&[&path])),
        ("set_perms", XS_SET_PERMS, list(&[&path, &perm])),
        ("watch", XS_WATCH, list(&[&path, "token"])),
        ("mkdir", XS_MKDIR, list(&[&path])),
        ("rm", XS_RM, list(&[&path])),
    ] {
        refused(store.ask(kind, 0, &payload).await?, &[Errno::EINVAL], what)?;
    }
    Ok(())
}

async fn common_start(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    for name in ["ab", "abc", "ab-c", "ab/c"] {
        put(store, &at(name), name).await?;
    }
    ok(store.remove(&at("ab")).await?, "rm")?;
    missing(store, &at("ab/c")).await?;
    holds(store, &at("abc"), "abc").await?;
    holds(store, &at("ab-c"), "ab-c").await
}

async fn special(env: &mut Env) -> Verdict {
    let store = fresh(env).await?;
    refused_somehow(store.read("@releaseDomain").await?, "read")?;
    refused_somehow(store.write("@releaseDomain", "x").await?, "write")?;
    refused_somehow(store.directory("@introduceDomain").await?, "directory")
}
