//! How a domain finds its console: by `start_info`, and by xenstore.

use alloc::format;
use alloc::string::String;

use ring_abi::grant::{GNTTAB_RESERVED_CONSOLE, GTF_PERMIT_ACCESS, GTF_TYPE_MASK};
use ring_abi::types::{DomId, Mfn};

use super::Console;
use crate::verdict::Need;
use crate::{Env, Problem, Verdict};

cases! {
    needs [Hypervisor, DomU, Store, Console];
    "console.start-info.frame" = frame {
        title: "console.domU.mfn of start_info",
        rule: "The console's page is a frame of the domain's own memory.",
        source: "xen.h, struct start_info, console.domU.mfn",
    }
    "console.start-info.port" = port {
        title: "console.domU.evtchn of start_info",
        rule: "The console's port is open when the domain starts.",
        source: "xen.h, struct start_info, console.domU.evtchn",
    }
    "console.start-info.not-xenstores" = not_xenstores {
        title: "the console's page and port, and xenstore's",
        rule: "Console and xenstore have a page and a port each.",
        source: "xen.h, struct start_info, store_mfn, store_evtchn, console",
    }
    "console.start-info.grant" = grant {
        title: "entry 0 of the grant table",
        rule: "GNTTAB_RESERVED_CONSOLE grants the console's page to the console's backend, for writing.",
        source: "grant_table.h, GNTTAB_RESERVED_CONSOLE",
    }
    "console.nodes.ring-ref" = ring_ref {
        title: "console/ring-ref",
        rule: "ring-ref of the first console is the frame that start_info names.",
        source: "misc/console.txt, 'ring-ref'; xen.h, struct start_info",
    }
    "console.nodes.port" = port_node {
        title: "console/port",
        rule: "port of the first console is the port that start_info names.",
        source: "misc/console.txt, 'port'; xen.h, struct start_info",
    }
    "console.nodes.type" = kind {
        title: "console/type",
        rule: "type says who serves the console: xenconsoled or ioemu.",
        source: "misc/console.txt, 'type'",
    }
    "console.nodes.limit" = limit {
        title: "console/limit",
        rule: "limit is the number of bytes that the daemon keeps.",
        source: "misc/console.txt, 'limit'",
    }
    "console.nodes.tty" = tty {
        title: "console/tty",
        rule: "tty is there for the daemon to name its terminal in.",
        source: "misc/console.txt, 'tty'",
    }
    "console.nodes.backend" = backend {
        title: "console/backend and backend-id, and what the backend says of its frontend",
        rule: "Frontend and backend of a device name each other.",
        source: "misc/console.txt, 'backend'; misc/xenstore-paths.pandoc, '~/console/*'",
    }
    "console.nodes.not-the-guests" = not_writable {
        title: "writes to console/ring-ref and console/port",
        rule: "The nodes of the first console are the toolstack's: the domain reads them, and no more.",
        source: "misc/xenstore-paths.pandoc, '~/console/*'",
    }
}

fn console(env: &Env) -> Verdict<Console> {
    env.console.clone().ok_or_else(|| Problem::Skip(Need::Console.missing().into()))
}

/// A node of the console's.
async fn node(env: &mut Env, key: &str) -> Verdict<String> {
    match env.store()?.read(&format!("console/{key}")).await? {
        Ok(value) => Ok(value),
        Err(errno) => Err(Problem::Fail(format!("console/{key}: {errno}"))),
    }
}

async fn frame(env: &mut Env) -> Verdict {
    let console = console(env)?;
    // A domain may map its own page a second time, in its own name.
    let again = pvrt::mem::map_foreign(DomId::SELF, &[console.ring.mfn], true)
        .map_err(|error| Problem::Fail(format!("mapping frame {}: {error:?}", console.ring.mfn.raw())))?;
    // An offset behind the indices, in bytes that no end uses.
    const AT: usize = 4088;
    let before = console.ring.page.swap_u64(AT, 0x6d69_6372_6f68_7621);
    let seen = again.bytes().load_u64(AT);
    console.ring.page.store_u64(AT, before);
    ensure_eq!(seen, 0x6d69_6372_6f68_7621, "what was written to the page, in the frame");
    Ok(())
}

async fn port(env: &mut Env) -> Verdict {
    let number = console(env)?.ring.port.number();
    ensure!(number.raw() != 0, "the port is 0");
    let open = pvrt::hypercall::event::is_open(number);
    ensure_eq!(open, Ok(true), "is port {number} open");
    Ok(())
}

async fn not_xenstores(env: &mut Env) -> Verdict {
    let console = console(env)?;
    let Some((mfn, port)) = env.store_ring else { return Err(Problem::Skip("no xenstore ring".into())) };
    ensure!(mfn != console.ring.mfn, "both are in frame {}", mfn.raw());
    ensure!(port != console.ring.port.number(), "both have port {port}");
    Ok(())
}

async fn grant(env: &mut Env) -> Verdict {
    let console = console(env)?;
    let mut frames = [0];
    pvrt::hypercall::grant::setup_table(&mut frames)
        .map_err(|errno| Problem::Error(format!("setup_table: {errno}")))?;
    let table = pvrt::mem::map_foreign(DomId::SELF, &[Mfn::new(frames[0])], false)
        .map_err(|error| Problem::Error(format!("mapping the grant table: {error:?}")))?;
    let at = GNTTAB_RESERVED_CONSOLE as usize * 8;
    let (head, frame) = (table.bytes().load_u32(at), table.bytes().load_u32(at + 4));
    let (flags, dom) = (head as u16, (head >> 16) as u16);
    // The backend is free to have the page mapped or not.
    ensure_eq!(flags & GTF_TYPE_MASK, GTF_PERMIT_ACCESS, "the entry's type");
    ensure!(flags & ring_abi::grant::GTF_READONLY == 0, "it is granted for reading alone: {flags:#x}");
    ensure_eq!(u64::from(frame), console.ring.mfn.raw(), "the entry's frame");
    let backend = node(env, "backend-id").await?;
    ensure_eq!(format!("{dom}"), backend, "the entry's domain, and console/backend-id");
    Ok(())
}

async fn ring_ref(env: &mut Env) -> Verdict {
    let mfn = console(env)?.ring.mfn.raw();
    ensure_eq!(node(env, "ring-ref").await?, format!("{mfn}"), "console/ring-ref");
    Ok(())
}

async fn port_node(env: &mut Env) -> Verdict {
    let port = console(env)?.ring.port.number().raw();
    ensure_eq!(node(env, "port").await?, format!("{port}"), "console/port");
    Ok(())
}

async fn kind(env: &mut Env) -> Verdict {
    let kind = node(env, "type").await?;
    ensure!(["xenconsoled", "ioemu"].contains(&&*kind), "console/type is {kind:?}");
    Ok(())
}

async fn limit(env: &mut Env) -> Verdict {
    let limit = node(env, "limit").await?;
    ensure!(limit.parse::<u64>().is_ok(), "console/limit is {limit:?}");
    Ok(())
}

async fn tty(env: &mut Env) -> Verdict {
    let tty = node(env, "tty").await?;
    ensure!(tty.is_empty() || tty.starts_with('/'), "console/tty is {tty:?}");
    Ok(())
}

async fn backend(env: &mut Env) -> Verdict {
    let back = node(env, "backend").await?;
    node(env, "backend-id").await?;
    let mut read = async |key: &str| -> Verdict<String> {
        let path = format!("{back}/{key}");
        let value = env.store()?.read(&path).await?;
        value.map_err(|errno| Problem::Fail(format!("{path}: {errno}")))
    };
    let (front, id) = (read("frontend").await?, read("frontend-id").await?);
    ensure_eq!(front, format!("/local/domain/{id}/console"), "the backend's frontend");
    let own = pvrt::hypercall::event::own_domid().map(|dom| dom.raw());
    ensure_eq!(Ok(id), own.map(|own| format!("{own}")), "the backend's frontend-id");
    Ok(())
}

async fn not_writable(env: &mut Env) -> Verdict {
    for key in ["ring-ref", "port"] {
        let before = node(env, key).await?;
        let result = env.store()?.write(&format!("console/{key}"), "1").await?;
        ensure!(result.is_err(), "console/{key} was written");
        ensure_eq!(node(env, key).await?, before, "console/{key} after a refused write");
    }
    Ok(())
}
