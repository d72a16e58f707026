//! A domain that breaks the ring's rules.

use ring_abi::io::console::{IN, OUT};

use super::front::{Front, IN_BYTES, OUT_BYTES, pattern, quiet};
use crate::{Env, Verdict};

cases! {
    needs [Console, BothEnds];
    "console.ruined.overrun-by-one" = overrun_by_one {
        title: "out_prod 2049 ahead of out_cons",
        rule: "out_prod is at most 2048 ahead of out_cons: what claims more is not believed.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.ruined.overrun-by-half" = overrun_by_half {
        title: "out_prod 2^31 ahead of out_cons",
        rule: "out_prod is at most 2048 ahead of out_cons: what claims more is not believed.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.ruined.back" = back {
        title: "out_prod one less than it was",
        rule: "Indices only grow: one less is 2^32-1 more, an overrun.",
        source: "io/console.h, XENCONS_RING_IDX",
    }
    "console.ruined.after-good" = after_good {
        title: "an overrun while good bytes wait",
        rule: "out_prod is at most 2048 ahead of out_cons: what claims more is not believed.",
        source: "io/console.h, struct xencons_interface, out",
    }
    "console.ruined.in-cons-ahead" = in_cons_ahead {
        title: "in_cons one ahead of in_prod, and something typed",
        rule: "in_cons is never ahead of in_prod: the daemon takes that for no room.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "console.ruined.in-cons-far-behind" = in_cons_behind {
        title: "in_cons 1025 behind in_prod, and something typed",
        rule: "in_prod is at most 1024 ahead of in_cons: the daemon takes more for no room.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "console.ruined.out-cons-rewritten" = out_cons_rewritten {
        title: "out_cons set back by the domain",
        rule: "out_cons is the daemon's: bytes that it has taken are not shown again.",
        source: "io/console.h, struct xencons_interface, out_cons",
    }
    "console.ruined.in-prod-rewritten" = in_prod_rewritten {
        title: "in_prod overwritten by the domain",
        rule: "in_prod is the daemon's: it goes on from where it was.",
        source: "io/console.h, struct xencons_interface, in_prod",
    }
}

/// Claims to have written `ahead` bytes. Checks that the daemon shows none of them and does not move its
/// index.
async fn claims(front: &Front, ahead: u32) -> Verdict {
    let before = front.indices();
    front.page.store_u32(OUT.prod, before.out_cons.wrapping_add(ahead));
    front.notify();
    quiet().await;
    ensure!(front.shown().is_empty(), "bytes were shown that nobody wrote");
    ensure_eq!(front.indices().out_cons, before.out_cons, "out_cons");
    Ok(())
}

async fn overrun_by_one(env: &mut Env) -> Verdict {
    let front = Front::take(env).await?;
    claims(&front, OUT_BYTES as u32 + 1).await
}

async fn overrun_by_half(env: &mut Env) -> Verdict {
    let front = Front::take(env).await?;
    claims(&front, 1 << 31).await
}

async fn back(env: &mut Env) -> Verdict {
    let front = Front::take(env).await?;
    claims(&front, u32::MAX).await
}

async fn after_good(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    front.put(b"good bytes");
    claims(&front, OUT_BYTES as u32 + 10).await
}

/// Sets in_cons to `ahead` of in_prod and types. Checks that the daemon overwrites no byte that the domain
/// has not read.
async fn no_room(front: &Front, ahead: u32) -> Verdict {
    let before = front.indices();
    let mut old = [0; IN_BYTES];
    front.page.fill(IN.data, IN_BYTES, b'#');
    front.page.read(IN.data, &mut old);
    front.page.store_u32(IN.cons, before.in_prod.wrapping_add(ahead));
    front.enter(b"typed")?;
    front.notify();
    quiet().await;
    let mut now = [0; IN_BYTES];
    front.page.read(IN.data, &mut now);
    ensure!(now == old, "input was written where there is no room");
    ensure_eq!(front.indices().in_prod, before.in_prod, "in_prod");
    Ok(())
}

async fn in_cons_ahead(env: &mut Env) -> Verdict {
    let front = Front::take(env).await?;
    no_room(&front, 1).await
}

async fn in_cons_behind(env: &mut Env) -> Verdict {
    let front = Front::take(env).await?;
    no_room(&front, (IN_BYTES as u32 + 1).wrapping_neg()).await
}

async fn out_cons_rewritten(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let first = pattern(500);
    front.send(&first);
    front.taken().await?;
    front.expect_shown(&first).await?;
    let true_cons = front.indices().out_cons;
    front.page.store_u32(OUT.cons, true_cons.wrapping_sub(300));
    front.put(b"next\n");
    front.publish();
    front.notify();
    front.expect_shown(b"next\n").await?;
    ensure_eq!(front.indices().out_cons, true_cons.wrapping_add(5), "out_cons");
    Ok(())
}

async fn in_prod_rewritten(env: &mut Env) -> Verdict {
    let mut front = Front::take(env).await?;
    let true_prod = front.indices().in_prod;
    front.page.store_u32(IN.prod, true_prod.wrapping_add(77));
    front.enter(b"typed")?;
    quiet().await;
    ensure_eq!(front.indices().in_prod, true_prod.wrapping_add(5), "in_prod");
    ensure_eq!(front.read(10), b"typed", "what was typed");
    Ok(())
}
