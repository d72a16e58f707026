//! What a frontend writes.

use ring_abi::io::console::OUT;

use super::back::{Back, quiet};
use crate::console::front::{OUT_BYTES, pattern};
use crate::{Env, Verdict};

cases! {
    needs [BothEnds];
    "consolefront.out.data" = data {
        title: "a line",
        rule: "What a domain writes lies between out_cons and out_prod, in order, and an event tells of it.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "consolefront.out.every-byte" = every_byte {
        title: "each value from 0 to 255",
        rule: "The ring carries bytes, not text: none has a meaning for it.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "consolefront.out.full" = full {
        title: "3000 bytes to a daemon that takes nothing",
        rule: "out_prod is never more than 2048 ahead of out_cons: a domain waits for room.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "consolefront.out.room" = room {
        title: "20000 bytes to a daemon that takes 100 at a time",
        rule: "A domain that waits for room loses nothing, and goes on at the event.",
        source: "io/console.h, out_cons",
    }
    "consolefront.out.one-byte-of-room" = one_byte {
        title: "a full ring of which the daemon takes one byte",
        rule: "out_prod follows out_cons by what was taken, and no further.",
        source: "io/console.h, out_cons, out_prod",
    }
    "consolefront.out.events-bring-no-room" = events {
        title: "a hundred events on a full ring",
        rule: "An event promises nothing: out_cons says what room there is.",
        source: "io/console.h, out_cons",
    }
    "consolefront.out.wrap" = wrap {
        title: "five rings of bytes in pieces of 300",
        rule: "The slot of an index is its remainder by the size of the ring.",
        source: "io/console.h, MASK_XENCONS_IDX",
    }
    "consolefront.out.index-wrap" = index_wrap {
        title: "indices that pass 2^32, the ring full",
        rule: "Indices are numbers of 32 bits, and wrap.",
        source: "io/console.h, XENCONS_RING_IDX",
    }
    "consolefront.out.used-ring" = used {
        title: "a ring whose indices stand at 12345",
        rule: "A frontend goes on where the indices of its ring stand.",
        source: "io/console.h, struct xencons_interface",
    }
    "consolefront.out.daemons-index" = daemons {
        title: "out_cons after 2048 bytes that nobody takes",
        rule: "out_cons is the daemon's: the domain writes out_prod alone.",
        source: "io/console.h, struct xencons_interface, out_cons",
    }
}

async fn data(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let asked = back.write(b"hello\n");
    back.output().await?;
    ensure_eq!(back.take(100)?, b"hello\n", "what was written");
    back.end(asked).await
}

async fn every_byte(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes: alloc::vec::Vec<u8> = (0..=255).collect();
    let asked = back.write(&bytes);
    ensure!(back.take_all(256, 2048).await? == bytes, "other bytes than were written");
    back.end(asked).await
}

async fn full(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes = pattern(3000);
    let asked = back.write(&bytes);
    quiet().await;
    ensure_eq!(back.waiting()?, OUT_BYTES, "bytes in the ring");
    ensure!(back.take_all(3000, OUT_BYTES).await? == bytes, "other bytes than were written");
    back.end(asked).await
}

async fn room(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes = pattern(20_000);
    let asked = back.write(&bytes);
    ensure!(back.take_all(20_000, 100).await? == bytes, "other bytes than were written");
    back.end(asked).await
}

async fn one_byte(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes = pattern(OUT_BYTES + 10);
    let asked = back.write(&bytes);
    quiet().await;
    ensure_eq!(back.take(1)?, bytes[..1], "what was written");
    quiet().await;
    ensure_eq!(back.indices().out_prod, OUT_BYTES as u32 + 1, "out_prod");
    ensure!(back.take_all(OUT_BYTES + 9, OUT_BYTES).await? == bytes[1..], "other bytes than were written");
    back.end(asked).await
}

async fn events(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let bytes = pattern(OUT_BYTES + 10);
    let asked = back.write(&bytes);
    for _ in 0..100 {
        back.notify();
        pvrt::yield_now().await;
        ensure!(back.waiting()? <= OUT_BYTES, "more than the ring holds");
    }
    quiet().await;
    ensure!(back.take_all(bytes.len(), OUT_BYTES).await? == bytes, "other bytes than were written");
    back.end(asked).await
}

async fn wrap(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    for piece in pattern(5 * OUT_BYTES).chunks(300) {
        let asked = back.write(piece);
        ensure!(back.take_all(piece.len(), OUT_BYTES).await? == piece, "other bytes than were written");
        back.end(asked).await?;
    }
    Ok(())
}

async fn index_wrap(env: &mut Env) -> Verdict {
    let mut back = Back::starting(env, 1000u32.wrapping_neg(), 0)?;
    let bytes = pattern(5000);
    let asked = back.write(&bytes);
    quiet().await;
    ensure_eq!(back.indices().out_prod, 1048, "out_prod of a full ring");
    ensure!(back.take_all(5000, 700).await? == bytes, "other bytes than were written");
    back.end(asked).await
}

async fn used(env: &mut Env) -> Verdict {
    let mut back = Back::starting(env, 12345, 12345)?;
    let asked = back.write(b"on\n");
    back.output().await?;
    ensure_eq!(back.indices().out_prod, 12348, "out_prod");
    ensure_eq!(back.take(100)?, b"on\n", "what was written");
    back.end(asked).await?;
    back.enter(b"in")?;
    let asked = back.read(10);
    ensure_eq!(back.end(asked).await?, b"in", "what was read");
    Ok(())
}

async fn daemons(env: &mut Env) -> Verdict {
    let back = Back::new(env)?;
    let asked = back.write(&pattern(OUT_BYTES));
    back.end(asked).await?;
    ensure_eq!(back.page.load_u32(OUT.cons), 0, "out_cons");
    Ok(())
}
