//! From the daemon to the domain.

use alloc::vec::Vec;

use super::front::{Front, IN_BYTES, pattern, quiet, text};
use crate::{Env, Verdict};

cases! {
    needs [Console];
    "console.in.nothing-typed" = nothing_typed {
        title: "the ring to the domain when nobody types",
        rule: "The daemon moves in_prod for input alone, and never more than 1024 ahead of in_cons.",
        source: "io/console.h, struct xencons_interface, in_prod",
    }
    "console.in.events-bring-nothing" = events_bring_nothing {
        title: "events to the daemon when nobody types",
        rule: "The daemon moves in_prod for input alone, and in_cons never.",
        source: "io/console.h, struct xencons_interface, in_cons, in_prod",
    }
    "console.in.data" = data {
        title: "typed bytes",
        rule: "What was typed lies between in_cons and in_prod, in order.",
        source: "io/console.h, struct xencons_interface, in",
        also: [BothEnds],
    }
    "console.in.event" = event {
        title: "an event with a typed byte",
        rule: "The daemon notifies the domain when it has moved in_prod.",
        source: "io/console.h, in_prod; misc/console.txt",
        also: [BothEnds],
    }
    "console.in.every-byte" = every_byte {
        title: "each value from 0 to 255",
        rule: "The ring carries bytes, not text: none has a meaning for it.",
        source: "io/console.h, struct xencons_interface, in",
        also: [BothEnds],
    }
    "console.in.wrap" = wrap {
        title: "pieces of 300 bytes, read at once, five rings long",
        rule: "The slot of an index is its remainder by the size of the ring.",
        source: "io/console.h, MASK_XENCONS_IDX",
        also: [BothEnds],
    }
    "console.in.index-wrap" = index_wrap {
        title: "indices that pass 2^32",
        rule: "Indices are numbers of 32 bits, and wrap.",
        source: "io/console.h, XENCONS_RING_IDX",
        also: [BothEnds],
    }
    "console.in.full" = full {
        title: "3000 bytes typed to a domain that does not read",
        rule: "in_prod is never more than 1024 ahead of in_cons: what the domain has not read stays as it is.",
        source: "io/console.h, struct xencons_interface, in",
        also: [BothEnds],
    }
    "console.in.room" = room {
        title: "a full ring read a hundred bytes at a time",
        rule: "What did not fit is delivered, in order, when the domain has moved in_cons and sent an event.",
        source: "io/console.h, in_cons",
        also: [BothEnds],
    }
    "console.in.left-over" = left_over {
        title: "a full ring of which one byte was read",
        rule: "in_prod follows in_cons by what was read, and no further.",
        source: "io/console.h, struct xencons_interface, in_cons, in_prod",
        also: [BothEnds],
    }
    "console.in.both-ways" = both_ways {
        title: "2000 bytes in while 20000 go out",
        rule: "The two rings have nothing to do with each other.",
        source: "io/console.h, struct xencons_interface",
        also: [BothEnds],
    }
}

async fn nothing_typed(env: &mut Env) -> Verdict {
    let front = Front::take(env).await?;
    let before = front.indices();
    ensure!(before.in_prod.wrapping_sub(before.in_cons) as usize <= IN_BYTES, "{before:?}");
    quiet().await;
    ensure_eq!(front.indices(), before, "the indices");
    Ok(())
}

async fn events_bring_nothing(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices();
    for _ in 0..20 {
        front.notify();
        pvrt::yield_now().await;
    }
    front.send(b"\n");
    front.taken().await?;
    let after = front.indices();
    ensure_eq!((after.in_cons, after.in_prod), (before.in_cons, before.in_prod), "in_cons and in_prod");
    Ok(())
}

async fn data(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices();
    ensure_eq!(front.enter(b"root\n")?, 5, "bytes taken");
    front.typed(5).await?;
    let at = front.indices();
    ensure_eq!(at.in_prod, before.in_prod.wrapping_add(5), "in_prod");
    ensure_eq!(at.in_cons, before.in_cons, "in_cons, which is the domain's");
    ensure_eq!(front.read(100), b"root\n", "what was typed");
    Ok(())
}

async fn event(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    for byte in b"abc" {
        front.forget_event();
        front.enter(&[*byte])?;
        front.typed(1).await?;
        ensure_eq!(front.read(10), [*byte], "what was typed");
        quiet().await;
    }
    Ok(())
}

async fn every_byte(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes: Vec<u8> = (0..=255).collect();
    front.enter(&bytes)?;
    front.typed(bytes.len()).await?;
    ensure_eq!(front.read(IN_BYTES), bytes, "what was typed");
    Ok(())
}

async fn wrap(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = pattern(5 * IN_BYTES);
    for piece in bytes.chunks(300) {
        ensure_eq!(front.enter(piece)?, piece.len(), "bytes taken");
        front.typed(piece.len()).await?;
        ensure!(front.read(IN_BYTES) == piece, "other bytes than were typed");
        // The daemon has an event to look at.
        quiet().await;
        front.forget_event();
    }
    Ok(())
}

async fn index_wrap(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices().in_prod;
    require!(before > 1 << 31, "the indices are far from 2^32");
    let ahead = before.wrapping_neg() as usize;
    require!(ahead < IN_BYTES, "the indices are far from 2^32");
    let bytes = pattern(IN_BYTES);
    front.enter(&bytes)?;
    front.typed(IN_BYTES).await?;
    ensure_eq!(front.indices().in_prod, (IN_BYTES - ahead) as u32, "in_prod");
    ensure!(front.read(IN_BYTES) == bytes, "other bytes than were typed");
    Ok(())
}

async fn full(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = pattern(3000);
    front.enter(&bytes)?;
    quiet().await;
    ensure_eq!(front.waiting(), IN_BYTES, "bytes in the ring");
    // More input, and events, change nothing.
    front.enter(b"more")?;
    front.notify();
    quiet().await;
    ensure_eq!(front.waiting(), IN_BYTES, "bytes in the ring");
    ensure!(front.read(IN_BYTES) == bytes[..IN_BYTES], "other bytes than were typed");
    Ok(())
}

async fn room(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = pattern(3000);
    ensure_eq!(front.enter(&bytes)?, 3000, "bytes taken");
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        front.typed(1).await?;
        while front.waiting() > 0 {
            ensure!(front.waiting() <= IN_BYTES, "{} bytes in the ring", front.waiting());
            got.extend(front.read(100));
            pvrt::yield_now().await;
        }
    }
    ensure!(got == bytes, "other bytes than were typed");
    Ok(())
}

async fn left_over(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = pattern(IN_BYTES + 10);
    front.enter(&bytes)?;
    quiet().await;
    let before = front.indices().in_prod;
    front.read(1);
    quiet().await;
    ensure_eq!(front.indices().in_prod, before.wrapping_add(1), "in_prod after a byte was read");
    // The byte went to the slot that was read, and to no other.
    ensure!(front.read(IN_BYTES) == bytes[1..=IN_BYTES], "other bytes than were typed");
    Ok(())
}

async fn both_ways(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let (typed, written) = (pattern(2000), text(20_000));
    front.enter(&typed)?;
    let mut got = Vec::new();
    for piece in written.chunks(500) {
        front.write(piece).await?;
        got.extend(front.read(70));
        front.taken().await?;
    }
    for _ in 0..10 {
        got.extend(front.read(IN_BYTES));
        quiet().await;
    }
    ensure!(got == typed, "other bytes than were typed");
    front.expect_shown(&written).await
}
