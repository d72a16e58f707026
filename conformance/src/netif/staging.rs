//! Pages that a frontend lends for the life of a connection (static grants).

use alloc::vec::Vec;

use ring_abi::io::netif::*;
use zerocopy::{FromZeros, IntoBytes};

use super::control::{SUCCESS, status, supported, with_control};
use super::front::{Made, Net};
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.staging.size" = size {
        title: "how many pages the backend keeps for the first queue",
        rule: "GET_GREF_MAPPING_SIZE gives the most entries of a queue, or 0 where there are none.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE",
    }
    "netif.staging.queue-out-of-range" = queue_range {
        title: "the queues 1 and 2^32-1 of one",
        rule: "A queue index out of range is INVALID_PARAMETER.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE",
    }
    "netif.staging.add-and-remove" = add_remove {
        title: "eight pages lent and taken back",
        rule: "ADD_GREF_MAPPING maps a list of grants, DEL_GREF_MAPPING unmaps them and says how many.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_{ADD,DEL}_GREF_MAPPING",
    }
    "netif.staging.frames-from-lent-pages" = frames_from {
        title: "frames in pages that are lent",
        rule: "A request may name a page that is lent as any other.",
        source: "io/netif.h, 'Static Grants'",
    }
    "netif.staging.read-only" = read_only {
        title: "pages lent for reading alone, granted so",
        rule: "XEN_NETIF_CTRLF_GREF_readonly lends a page for reading.",
        source: "io/netif.h, XEN_NETIF_CTRLF_GREF_readonly",
    }
    "netif.staging.unmapped-after-removal" = unmapped {
        title: "the grants after the removal",
        rule: "A backend that has taken a page from its list has unmapped the page.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING",
    }
    "netif.staging.unmapped-after-close" = unmapped_close {
        title: "the grants after both ends are Closed",
        rule: "A backend that has closed has unmapped what was lent.",
        source: "io/xenbus.h, XenbusStateClosed; io/netif.h, 'Static Grants'",
    }
    "netif.staging.bad-grant" = bad_grant {
        title: "a list of four of which one is no grant",
        rule: "If one cannot be mapped, none of the list's grants get added.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, NOTE",
    }
    "netif.staging.twice-in-a-list" = twice {
        title: "a list with a page twice, and one with a page that is lent already",
        rule: "A list is added as a whole or not at all; the list after it is served.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, NOTE",
    }
    "netif.staging.too-many" = too_many {
        title: "a list with one entry more than the backend keeps",
        rule: "More than the backend keeps cannot be added.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE",
    }
    "netif.staging.list-too-long" = list_long {
        title: "lists of 513 and 2^32-1 entries",
        rule: "A list lies in one page.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING",
    }
    "netif.staging.list-not-granted" = list_not_granted {
        title: "a list in a page that was not granted",
        rule: "A list that cannot be read is refused.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_{ADD,DEL}_GREF_MAPPING",
    }
    "netif.staging.remove-unknown" = remove_unknown {
        title: "the removal of two lent pages and one that is not",
        rule: "An entry that was never added has the status INVALID_PARAMETER; the others are removed.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, NOTE",
    }
    "netif.staging.status-not-read" = status_not_read {
        title: "lists whose status fields are not 0",
        rule: "status need not be zero before a message.",
        source: "io/netif.h, 'Static Grants', status",
    }
    "netif.staging.again" = again {
        title: "twenty times lent and taken back",
        rule: "What was taken back may be lent again.",
        source: "io/netif.h, XEN_NETIF_CTRL_TYPE_{ADD,DEL}_GREF_MAPPING",
    }
}

pub(super) const ADD: u16 = XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING;
pub(super) const DEL: u16 = XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING;
pub(super) const INVALID: u32 = XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER;

/// A net whose backend keeps at least eight pages, and how many.
pub(super) async fn with_stage(env: &mut Env) -> Verdict<(Net<'_>, u32)> {
    let mut net = with_control(env, 1).await?;
    let most = supported(&mut net, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [0; 3], SUCCESS).await?;
    require!(most >= 8, "the backend keeps {most} pages");
    Ok((net, most))
}

/// The entries of a list of whole pages.
pub(super) fn entries(pages: &Granted, flags: u16) -> Vec<XenNetifGref> {
    (0..pages.count()).map(|page| XenNetifGref { r#ref: pages.gref(page), flags, status: 0 }).collect()
}

/// Asks with a list; gives the status, the data, and the list afterwards.
pub(super) async fn ask(
    net: &mut Net<'_>,
    kind: u16,
    list: &[XenNetifGref],
) -> Verdict<(u32, u32, Vec<XenNetifGref>)> {
    let page = Granted::new(net.sender.dom, 1, false)?;
    page.bytes().write(0, list.as_bytes());
    let data = [0, page.gref(0), list.len() as u32];
    let (status, value) = net.sender.control(kind, data).await?;
    ensure!(!page.in_use(), "the list's page is in use after the response");
    let mut after = list.to_vec();
    after.fill_with(XenNetifGref::new_zeroed);
    page.bytes().read(0, after.as_mut_bytes());
    Ok((status, value, after))
}

pub(super) async fn add(net: &mut Net<'_>, list: &[XenNetifGref]) -> Verdict {
    ensure_eq!(ask(net, ADD, list).await?.0, SUCCESS, "status of a list of {}", list.len());
    Ok(())
}

pub(super) async fn remove(net: &mut Net<'_>, list: &[XenNetifGref]) -> Verdict {
    let (status, count, after) = ask(net, DEL, list).await?;
    ensure_eq!((status, count), (SUCCESS, list.len() as u32), "status and count of a removal");
    ensure!(after.iter().all(|entry| entry.status == 0), "statuses of a removal: {after:?}");
    Ok(())
}

async fn size(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    supported(&mut net, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [0; 3], SUCCESS).await?;
    net.close().await
}

async fn queue_range(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    for queue in [1, u32::MAX] {
        for kind in [XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, ADD, DEL] {
            status(&mut net, kind, [queue, 0, 0], INVALID).await?;
        }
    }
    net.close().await
}

async fn add_remove(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 8, false)?;
    let list = entries(&pages, 0);
    add(&mut net, &list).await?;
    remove(&mut net, &list).await?;
    net.close().await
}

async fn frames_from(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let made = net.cut(1500, 600, &[0, 100, 0])?;
    let list = entries(&made.pages, XEN_NETIF_CTRLF_GREF_READONLY);
    add(&mut net, &list).await?;
    for _ in 0..10 {
        net.passes("a frame", &made).await?;
    }
    remove(&mut net, &list).await?;
    net.passes("a frame", &made).await?;
    net.close().await
}

async fn read_only(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 4, true)?;
    let list = entries(&pages, XEN_NETIF_CTRLF_GREF_READONLY);
    add(&mut net, &list).await?;
    remove(&mut net, &list).await?;
    net.close().await
}

async fn unmapped(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 4, false)?;
    let list = entries(&pages, 0);
    add(&mut net, &list).await?;
    remove(&mut net, &list).await?;
    ensure!(!pages.in_use(), "a page that was taken back is still mapped");
    net.close().await
}

async fn unmapped_close(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 8, false)?;
    add(&mut net, &entries(&pages, 0)).await?;
    net.close().await?;
    ensure!(!pages.in_use(), "a page is mapped after both ends are closed");
    Ok(())
}

async fn bad_grant(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 4, false)?;
    for gref in [7, 4_000_000, u32::MAX] {
        let mut list = entries(&pages, 0);
        list[2].r#ref = gref;
        ensure_eq!(ask(&mut net, ADD, &list).await?.0, INVALID, "status of a list with a bad grant");
        ensure!(!pages.in_use(), "a page of a refused list is mapped");
    }
    let list = entries(&pages, 0);
    let (_, count, _) = ask(&mut net, DEL, &list).await?;
    ensure_eq!(count, 0, "pages of refused lists that could be taken back");
    add(&mut net, &list).await?;
    net.close().await
}

async fn twice(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 2, false)?;
    let list = entries(&pages, 0);
    let (first, ..) = ask(&mut net, ADD, &[list[0], list[0]]).await?;
    if first != SUCCESS {
        ensure!(!pages.in_use(), "a page of a refused list is mapped");
        add(&mut net, &list).await?;
        let (again, ..) = ask(&mut net, ADD, &list[..1]).await?;
        if again != SUCCESS {
            remove(&mut net, &list).await?;
        }
    }
    net.goes_on().await?;
    net.close().await?;
    ensure!(!pages.in_use(), "a page is mapped after both ends are closed");
    Ok(())
}

async fn too_many(env: &mut Env) -> Verdict {
    let (mut net, most) = with_stage(env).await?;
    require!(most < 512, "the backend keeps as many pages as a list has entries");
    let pages = Granted::new(net.sender.dom, most as usize + 1, false)?;
    let list = entries(&pages, 0);
    ensure_eq!(ask(&mut net, ADD, &list).await?.0, INVALID, "status of a list of {}", most + 1);
    add(&mut net, &list[..most as usize]).await?;
    ensure_eq!(ask(&mut net, ADD, &list[most as usize..]).await?.0, INVALID, "status of one more page");
    remove(&mut net, &list[..most as usize]).await?;
    net.close().await
}

async fn list_long(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let page = Granted::new(net.sender.dom, 1, false)?;
    for count in [513, u32::MAX] {
        for kind in [ADD, DEL] {
            let (got, _) = net.sender.control(kind, [0, page.gref(0), count]).await?;
            ensure!(got != SUCCESS, "a list of {count} entries is taken");
        }
    }
    net.close().await
}

async fn list_not_granted(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    for gref in [7, 4_000_000, u32::MAX] {
        for kind in [ADD, DEL] {
            status(&mut net, kind, [0, gref, 1], INVALID).await?;
        }
    }
    net.close().await
}

async fn remove_unknown(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 3, false)?;
    let list = entries(&pages, 0);
    add(&mut net, &[list[0], list[2]]).await?;
    let (got, count, after) = ask(&mut net, DEL, &list).await?;
    ensure_eq!((got, count), (SUCCESS, 2), "status and count of a removal");
    let statuses: Vec<_> = after.iter().map(|entry| u32::from(entry.status)).collect();
    ensure_eq!(statuses, [SUCCESS, INVALID, SUCCESS], "statuses of the entries");
    net.close().await
}

async fn status_not_read(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 2, false)?;
    let mut list = entries(&pages, 0);
    list.iter_mut().for_each(|entry| entry.status = 0x7777);
    add(&mut net, &list).await?;
    remove(&mut net, &list).await?;
    net.close().await
}

async fn again(env: &mut Env) -> Verdict {
    let (mut net, _) = with_stage(env).await?;
    let pages = Granted::new(net.sender.dom, 8, false)?;
    let list = entries(&pages, 0);
    for _ in 0..20 {
        add(&mut net, &list).await?;
        remove(&mut net, &list).await?;
    }
    let made = Made::whole(net.sender.dom, &net.frame(60, 1))?;
    net.passes("a frame", &made).await?;
    net.close().await
}
