//! From the domain to the daemon.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::io::console::OUT;

use super::front::{Front, OUT_BYTES, pattern, quiet, text};
use crate::case::PREFIX;
use crate::{Env, Verdict};

cases! {
    needs [Console];
    "console.out.one-byte" = one_byte {
        title: "one byte, shown with an event",
        rule: "The daemon takes what lies between out_cons and out_prod, and moves out_cons behind it.",
        source: "io/console.h, struct xencons_interface, out_cons, out_prod",
    }
    "console.out.full" = full {
        title: "2048 bytes at once",
        rule: "The ring holds as many bytes as `out` has: out_prod may be 2048 ahead of out_cons.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.out.all-but-one" = all_but_one {
        title: "2047 bytes at once",
        rule: "The ring holds as many bytes as `out` has: out_prod may be 2048 ahead of out_cons.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.out.wrap" = wrap {
        title: "writes across the end of `out`, at nine places",
        rule: "The slot of an index is its remainder by the size of the ring.",
        source: "io/console.h, MASK_XENCONS_IDX",
    }
    "console.out.last-slot" = last_slot {
        title: "one byte in the last slot, then one in the first",
        rule: "The slot of an index is its remainder by the size of the ring.",
        source: "io/console.h, MASK_XENCONS_IDX",
    }
    "console.out.full-across-the-end" = full_across {
        title: "2048 bytes from the middle of the ring on",
        rule: "The slot of an index is its remainder by the size of the ring.",
        source: "io/console.h, MASK_XENCONS_IDX",
    }
    "console.out.indices-run-on" = run_on {
        title: "out_cons after three rings of bytes",
        rule: "Indices run freely: they are reduced where a slot is looked up, not where they are stored.",
        source: "io/console.h, MASK_XENCONS_IDX, XENCONS_RING_IDX",
    }
    "console.out.index-wrap" = index_wrap {
        title: "indices that pass 2^32",
        rule: "Indices are numbers of 32 bits, and wrap.",
        source: "io/console.h, XENCONS_RING_IDX",
        also: [BothEnds],
    }
    "console.out.event-when-taken" = event_when_taken {
        title: "an event once a full ring has room",
        rule: "The daemon notifies the domain when it has moved out_cons: one that waits for room needs no timer.",
        source: "io/console.h, out_cons; misc/console.txt",
    }
    "console.out.not-published" = not_published {
        title: "bytes in the ring with an event, out_prod unmoved",
        rule: "An event promises nothing: out_prod says what there is.",
        source: "io/console.h, out_prod",
    }
    "console.out.events-without-bytes" = empty_events {
        title: "two hundred events on an empty ring",
        rule: "An event promises nothing: the daemon takes no byte that out_prod does not show.",
        source: "io/console.h, out_prod",
    }
    "console.out.one-event-for-many" = one_event {
        title: "out_prod moved twenty times, one event",
        rule: "Events are not counted: the daemon takes all that out_prod shows when one comes.",
        source: "io/console.h, out_prod; event_channel.h, EVTCHNOP_send",
    }
    "console.out.many-events-for-one" = many_events {
        title: "one byte, two hundred events",
        rule: "Events are not counted: a byte is taken once.",
        source: "io/console.h, out_cons; event_channel.h, EVTCHNOP_send",
    }
    "console.out.published-while-taking" = while_taking {
        title: "a ring filled again as soon as there is room",
        rule: "What is shown while the daemon takes is taken, now or at its event.",
        source: "io/console.h, out_prod",
    }
    "console.out.room-is-out-cons" = room {
        title: "a domain that fills just the room that out_cons leaves",
        rule: "Slots behind out_cons are the domain's to fill again.",
        source: "io/console.h, out_cons",
    }
    "console.out.burst" = burst {
        title: "64 KiB without a pause",
        rule: "A domain that waits for room loses nothing: every byte is taken, in order.",
        source: "io/console.h, struct xencons_interface",
    }
    "console.out.odd-pieces" = odd_pieces {
        title: "pieces of 1 to 97 bytes, each with its event",
        rule: "A domain that waits for room loses nothing: every byte is taken, in order.",
        source: "io/console.h, struct xencons_interface",
    }
    "console.out.every-byte" = every_byte {
        title: "each value from 0 to 255",
        rule: "The ring carries bytes, not text: none has a meaning for it.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.out.long-line" = long_line {
        title: "ten thousand bytes without a line end",
        rule: "The ring carries bytes, not lines: the daemon does not wait for a line's end.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.out.counted-lines" = counted_lines {
        title: "three hundred numbered lines, looked for by whoever reads the console",
        rule: "What a domain writes arrives whole and in order.",
        source: "io/console.h, struct xencons_interface; misc/console.txt",
    }
    "console.out.slots-left-alone" = slots {
        title: "the ring's bytes and out_prod after they were taken",
        rule: "`out` and out_prod are the domain's: the daemon writes out_cons alone.",
        source: "io/console.h, struct xencons_interface",
    }
    "console.out.input-left-alone" = input_alone {
        title: "the ring to the domain while 8 KiB go the other way",
        rule: "The two rings have nothing to do with each other.",
        source: "io/console.h, struct xencons_interface",
    }
}

/// Sends bytes that fit into the ring, and checks that the watcher sees them.
async fn arrives(front: &mut Front, bytes: &[u8]) -> Verdict {
    let before = front.indices();
    front.send(bytes);
    front.taken().await?;
    ensure_eq!(front.indices().out_cons.wrapping_sub(before.out_cons) as usize, bytes.len(), "bytes taken");
    front.expect_shown(bytes).await
}

async fn one_byte(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    arrives(&mut front, b"\n").await
}

async fn full(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    arrives(&mut front, &text(OUT_BYTES)).await
}

async fn all_but_one(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    arrives(&mut front, &text(OUT_BYTES - 1)).await
}

async fn wrap(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    for before in [1, 2, 3, 7, 64, 100, 299, 300, 301] {
        front.advance_to(OUT_BYTES - before).await?;
        arrives(&mut front, &text(302)).await?;
    }
    Ok(())
}

async fn last_slot(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    front.advance_to(OUT_BYTES - 1).await?;
    arrives(&mut front, b"z").await?;
    ensure_eq!(front.page.load_u8(OUT.data + OUT_BYTES - 1), b'z', "the last slot");
    arrives(&mut front, b"\n").await?;
    ensure_eq!(front.page.load_u8(OUT.data), b'\n', "the first slot");
    Ok(())
}

async fn full_across(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    front.advance_to(OUT_BYTES / 2 + 13).await?;
    arrives(&mut front, &text(OUT_BYTES)).await
}

async fn run_on(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices().out_cons;
    for _ in 0..3 {
        arrives(&mut front, &text(OUT_BYTES)).await?;
    }
    ensure_eq!(front.indices().out_cons, before.wrapping_add(3 * OUT_BYTES as u32), "out_cons");
    Ok(())
}

async fn index_wrap(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices().out_prod;
    require!(before > 1 << 31, "the indices are far from 2^32");
    let bytes = pattern(before.wrapping_neg() as usize + 3 * OUT_BYTES);
    front.write(&bytes).await?;
    front.taken().await?;
    let after = front.indices().out_cons;
    ensure_eq!(after, 3 * OUT_BYTES as u32, "out_cons");
    front.expect_shown(&bytes).await
}

async fn event_when_taken(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    front.forget_event();
    front.send(&text(OUT_BYTES));
    front.until(OUT_BYTES - 1).await?;
    front.taken().await
}

async fn not_published(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices();
    front.put(b"not yet\n");
    front.notify();
    quiet().await;
    ensure_eq!(front.indices(), before, "the indices");
    ensure!(front.shown().is_empty(), "bytes were shown that out_prod does not show");
    front.publish();
    front.notify();
    front.taken().await?;
    front.expect_shown(b"not yet\n").await
}

async fn empty_events(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices();
    for _ in 0..200 {
        front.notify();
        pvrt::yield_now().await;
    }
    quiet().await;
    ensure_eq!(front.indices(), before, "the indices");
    front.expect_shown(b"").await?;
    // Checks that the daemon still takes output.
    arrives(&mut front, b"\n").await
}

async fn one_event(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = text(20 * 50);
    for piece in bytes.chunks(50) {
        front.put(piece);
        front.publish();
    }
    front.notify();
    front.taken().await?;
    front.expect_shown(&bytes).await
}

async fn many_events(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices().out_cons;
    front.put(b"\n");
    front.publish();
    for _ in 0..200 {
        front.notify();
        pvrt::yield_now().await;
    }
    front.taken().await?;
    quiet().await;
    ensure_eq!(front.indices().out_cons, before.wrapping_add(1), "out_cons");
    front.expect_shown(b"\n").await
}

async fn while_taking(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = text(8 * OUT_BYTES);
    let mut rest = &bytes[..];
    let mut polls = 0;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(front.room()));
        if now.is_empty() {
            polls += 1;
            ensure!(polls < 10_000, "the daemon makes no room");
            pvrt::time::sleep(1_000_000).await;
            continue;
        }
        front.send(now);
        rest = later;
    }
    front.taken().await?;
    front.expect_shown(&bytes).await
}

async fn room(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = text(3 * OUT_BYTES);
    // From here on the ring is kept full to the last byte.
    front.send(&bytes[..OUT_BYTES]);
    front.write(&bytes[OUT_BYTES..]).await?;
    front.taken().await?;
    ensure_eq!(front.room(), OUT_BYTES, "the room of a ring that is taken");
    front.expect_shown(&bytes).await
}

async fn burst(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices().out_cons;
    let line = text(128);
    let bytes: Vec<u8> = line.iter().copied().cycle().take(64 << 10).collect();
    front.write(&bytes).await?;
    front.taken().await?;
    ensure_eq!(front.indices().out_cons, before.wrapping_add(64 << 10), "out_cons");
    front.expect_shown(&bytes).await
}

async fn odd_pieces(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = text((1..98).sum());
    let mut rest = &bytes[..];
    for size in 1..98 {
        let (now, later) = rest.split_at(size);
        front.write(now).await?;
        rest = later;
    }
    front.taken().await?;
    front.expect_shown(&bytes).await
}

async fn every_byte(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let mut bytes: Vec<u8> = (0..=255).collect();
    // Brings a terminal back to its usual state: left margin, normal colours and character set.
    bytes.extend_from_slice(b"\x1b[0m\x0f\r\n");
    arrives(&mut front, &bytes).await
}

async fn long_line(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = [b'-'; 10_000];
    front.write(&bytes).await?;
    front.taken().await?;
    front.expect_shown(&bytes).await?;
    arrives(&mut front, b"\n").await
}

/// The lines that are looked for.
const LINES: usize = 300;

async fn counted_lines(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let mut bytes = String::from("\n");
    for line in 1..=LINES {
        bytes += &format!("{PREFIX}count {line} of {LINES}\n");
    }
    front.write(bytes.as_bytes()).await?;
    front.taken().await?;
    front.expect_shown(bytes.as_bytes()).await
}

async fn slots(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let bytes = text(OUT_BYTES);
    front.advance_to(0).await?;
    arrives(&mut front, &bytes).await?;
    quiet().await;
    let mut now = [0; OUT_BYTES];
    front.page.read(OUT.data, &mut now);
    ensure!(now == bytes[..], "the daemon wrote to `out`");
    let at = front.indices();
    ensure_eq!(at.out_prod, at.out_cons, "out_prod");
    Ok(())
}

async fn input_alone(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let before = front.indices();
    let bytes = text(8 << 10);
    front.write(&bytes).await?;
    front.taken().await?;
    let after = front.indices();
    ensure_eq!((after.in_cons, after.in_prod), (before.in_cons, before.in_prod), "in_cons and in_prod");
    front.expect_shown(&bytes).await
}
