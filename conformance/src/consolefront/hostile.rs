//! A daemon that breaks the ring's rules.

use ring_abi::io::console::{IN, OUT};

use super::back::{Back, quiet};
use crate::console::front::{IN_BYTES, OUT_BYTES, pattern};
use crate::{Env, Verdict};

cases! {
    needs [BothEnds];
    "consolefront.hostile.in-overrun" = in_overrun {
        title: "in_prod 1025 ahead of in_cons",
        rule: "in_prod is at most 1024 ahead of in_cons: what claims more is not believed.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "consolefront.hostile.in-overrun-by-half" = in_half {
        title: "in_prod 2^31 ahead of in_cons",
        rule: "in_prod is at most 1024 ahead of in_cons: what claims more is not believed.",
        source: "io/console.h, struct xencons_interface, in",
    }
    "consolefront.hostile.in-back" = in_back {
        title: "in_prod one less than it was",
        rule: "Indices only grow: one less is 2^32-1 more, an overrun.",
        source: "io/console.h, XENCONS_RING_IDX",
    }
    "consolefront.hostile.out-cons-ahead" = out_ahead {
        title: "out_cons one ahead of out_prod",
        rule: "out_cons is never ahead of out_prod: a frontend takes that for no room.",
        source: "io/console.h, struct xencons_interface, out_cons",
    }
    "consolefront.hostile.out-cons-back" = out_back {
        title: "out_cons set 2049 behind out_prod",
        rule: "out_prod is at most 2048 ahead of out_cons: a frontend takes more for no room.",
        source: "io/console.h, struct xencons_interface, out_cons",
    }
    "consolefront.hostile.out-prod-rewritten" = out_prod {
        title: "out_prod overwritten by the daemon",
        rule: "out_prod is the domain's: it goes on from where it was.",
        source: "io/console.h, struct xencons_interface, out_prod",
    }
    "consolefront.hostile.in-cons-rewritten" = in_cons {
        title: "in_cons set back by the daemon",
        rule: "in_cons is the domain's: bytes that it has read do not come again.",
        source: "io/console.h, struct xencons_interface, in_cons",
    }
}

/// Claims to have typed `ahead` bytes. Checks that a read returns none of them.
async fn typed(env: &Env, ahead: u32) -> Verdict {
    let back = Back::new(env)?;
    back.page.store_u32(IN.prod, ahead);
    back.notify();
    let asked = back.read(4096);
    let got = back.gave(asked).await;
    ensure!(got.is_none(), "a read gave {} bytes that nobody typed", got.map_or(0, |got| got.len()));
    ensure_eq!(back.indices().in_cons, 0, "in_cons");
    Ok(())
}

async fn in_overrun(env: &mut Env) -> Verdict {
    typed(env, IN_BYTES as u32 + 1).await
}

async fn in_half(env: &mut Env) -> Verdict {
    typed(env, 1 << 31).await
}

async fn in_back(env: &mut Env) -> Verdict {
    typed(env, u32::MAX).await
}

/// Sets out_cons to `at` while 100 bytes wait. Checks that the frontend overwrites none of them.
async fn no_room(env: &Env, at: u32) -> Verdict {
    let back = Back::new(env)?;
    let bytes = pattern(100);
    let asked = back.write(&bytes);
    back.end(asked).await?;
    back.page.store_u32(OUT.cons, at);
    back.notify();
    let asked = back.write(&[b'#'; OUT_BYTES]);
    let got = back.gave(asked).await;
    ensure!(got.is_none(), "a write succeeded where there is no room");
    ensure_eq!(back.page.load_u32(OUT.prod), 100, "out_prod");
    let mut now = [0; 100];
    back.page.read(OUT.data, &mut now);
    ensure!(now == bytes[..], "bytes that wait were overwritten");
    Ok(())
}

async fn out_ahead(env: &mut Env) -> Verdict {
    no_room(env, 101).await
}

async fn out_back(env: &mut Env) -> Verdict {
    no_room(env, 100u32.wrapping_sub(OUT_BYTES as u32 + 1)).await
}

async fn out_prod(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    let asked = back.write(b"first");
    back.end(asked).await?;
    ensure_eq!(back.take(100)?, b"first", "what was written");
    back.page.store_u32(OUT.prod, 77);
    let asked = back.write(b"second");
    back.end(asked).await?;
    ensure_eq!(back.indices().out_prod, 11, "out_prod");
    ensure_eq!(back.take(100)?, b"second", "what was written");
    Ok(())
}

async fn in_cons(env: &mut Env) -> Verdict {
    let mut back = Back::new(env)?;
    back.enter(b"first")?;
    let asked = back.read(100);
    ensure_eq!(back.end(asked).await?, b"first", "what was read");
    back.page.store_u32(IN.cons, 1);
    back.notify();
    quiet().await;
    back.enter(b"second")?;
    let asked = back.read(100);
    ensure_eq!(back.end(asked).await?, b"second", "what was read");
    ensure_eq!(back.indices().in_cons, 11, "in_cons");
    Ok(())
}
