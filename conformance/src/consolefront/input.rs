//! What a frontend reads.

use alloc::vec::Vec;

use super::back::{Back, quiet};
use crate::console::front::{IN_BYTES, pattern};
use crate::{Env, Verdict};

cases! {
    needs [BothEnds];
    "consolefront.in.data" = data {
        title: "typed bytes, waited for",
        rule: "A frontend takes what lies between in_cons and in_prod, and moves in_cons behind it.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "consolefront.in.every-byte" = every_byte {
        title: "each value from 0 to 255",
        rule: "The ring carries bytes, not text: none has a meaning for it.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "consolefront.in.event-for-room" = event_for_room {
        title: "an event once a full ring has room",
        rule: "A domain notifies the daemon when it has moved in_cons: one that waits for room needs no timer.",
        source: "io/console.h, in_cons; misc/console.txt",
    }
    "consolefront.in.pieces" = pieces {
        title: "ten bytes, read three at a time",
        rule: "in_cons moves by what was read: what was not stays for later.",
        source: "io/console.h, in_cons",
    }
    "consolefront.in.full" = full {
        title: "1024 bytes at once",
        rule: "The ring holds as many bytes as `in` has: in_prod may be 1024 ahead of in_cons.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "consolefront.in.events-bring-nothing" = events {
        title: "a hundred events without a byte",
        rule: "An event promises nothing: in_prod says what there is.",
        source: "io/console.h, in_prod",
    }
    "consolefront.in.wrap" = wrap {
        title: "five rings of bytes in pieces of 300",
        rule: "The slot of an index is its remainder by the size of the ring.",
        source: "io/console.h, MASK_XENCONS_IDX",
    }
    "consolefront.in.index-wrap" = index_wrap {
        title: "indices that pass 2^32, the ring full",
        rule: "Indices are numbers of 32 bits, and wrap.",
        source: "io/console.h, XENCONS_RING_IDX",
    }
    "consolefront.in.daemons-index" = daemons {
        title: "in_prod after bytes were read",
        rule: "in_prod is the daemon's: the domain writes in_cons alone.",
        source: "io/console.h, struct xencons_interface, in_prod",
    }
}

/// Lets the frontend read until there are `count` bytes.
async fn read_all(back: &Back, count: usize, most: usize) -> Verdict<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let asked = back.read(most);
        let got = back.end(asked).await?;
        ensure!(!got.is_empty() && got.len() <= most, "a read of {most} gave {} bytes", got.len());
        bytes.extend(got);
    }
    Ok(bytes)
}

async fn data(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let asked = back.read(100);
    quiet().await;
    back.enter(b"root\n")?;
    ensure_eq!(back.end(asked).await?, b"root\n", "what was read");
    ensure_eq!(back.indices().in_cons, 5, "in_cons");
    Ok(())
}

async fn every_byte(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes: Vec<u8> = (0..=255).collect();
    back.enter(&bytes)?;
    ensure!(read_all(&back, 256, 1024).await? == bytes, "other bytes than were typed");
    Ok(())
}

async fn event_for_room(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    back.enter(&pattern(IN_BYTES))?;
    quiet().await;
    back.forget_event();
    let asked = back.read(1);
    back.event().await?;
    ensure_eq!(back.enter(b"xyz")?, 1, "the room");
    back.end(asked).await?;
    Ok(())
}

async fn pieces(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    back.enter(b"0123456789")?;
    for (most, wanted) in [(3, "012"), (3, "345"), (3, "678"), (3, "9")] {
        let asked = back.read(most);
        ensure_eq!(back.end(asked).await?, wanted.as_bytes(), "what was read");
    }
    Ok(())
}

async fn full(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes = pattern(IN_BYTES);
    ensure_eq!(back.enter(&bytes)?, IN_BYTES, "the room of a new ring");
    ensure!(read_all(&back, IN_BYTES, 5000).await? == bytes, "other bytes than were typed");
    Ok(())
}

async fn events(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let asked = back.read(10);
    for _ in 0..100 {
        back.notify();
        pvrt::yield_now().await;
    }
    quiet().await;
    ensure_eq!(back.indices().in_cons, 0, "in_cons");
    back.enter(b"at last")?;
    ensure_eq!(back.end(asked).await?, b"at last", "what was read");
    Ok(())
}

async fn wrap(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    for piece in pattern(5 * IN_BYTES).chunks(300) {
        ensure_eq!(back.enter(piece)?, piece.len(), "the room");
        ensure!(read_all(&back, piece.len(), 77).await? == piece, "other bytes than were typed");
    }
    Ok(())
}

async fn index_wrap(env: &mut Env) -> Verdict {
    let mut back = Back::starting(env, 0, 500u32.wrapping_neg())?;
    let bytes = pattern(IN_BYTES);
    ensure_eq!(back.enter(&bytes)?, IN_BYTES, "the room");
    ensure!(read_all(&back, IN_BYTES, 300).await? == bytes, "other bytes than were typed");
    ensure_eq!(back.indices().in_cons, IN_BYTES as u32 - 500, "in_cons");
    Ok(())
}

async fn daemons(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    back.enter(b"123")?;
    read_all(&back, 3, 3).await?;
    ensure_eq!(back.indices().in_prod, 3, "in_prod");
    Ok(())
}
