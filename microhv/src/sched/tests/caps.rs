//! A domain with a cap gets no more than that of the time, and no less while it wants that much.

use alloc::sync::Arc;

use super::several::Several;
use super::*;

/// Percent of a CPU that a domain runs in the next `seconds`.
fn percent(several: &Several, domain: &Arc<Domain>, seconds: u64) -> f64 {
    let all = || several.ran(core::slice::from_ref(domain)).iter().sum::<u64>();
    let before = all();
    several.run(seconds * 1000 * MS);
    (all() - before) as f64 / (seconds * 10 * MS) as f64
}

#[test]
fn caps_hold_within_two_percent() {
    for cpus in [1, 2, 4] {
        for vcpus in [1, 4] {
            for cap in [5, 50, 150] {
                for beside in [0, 1] {
                    let several = Several::new(cpus);
                    let capped = several.hog(vcpus, 1024);
                    let _others: Vec<_> = (0..beside).map(|_| several.hog(2, 256)).collect();
                    several.world.hv.set_cap(&capped, cap);
                    several.run(100 * MS);
                    let got = percent(&several, &capped, 3);
                    let most = 100.0 * f64::from(vcpus.min(cpus));
                    let least = if beside == 0 { most } else { most * 0.5 };
                    let wanted = (cap as f64).min(least);
                    let what = std::format!("{cpus} CPUs, {vcpus} vCPUs, cap {cap}, beside {beside}: {got}");
                    assert!(got <= cap as f64 * 1.02 && got >= wanted * 0.98, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_cap_that_is_taken_away_or_raised_holds_at_once() {
    let several = Several::new(2);
    let capped = several.hog(1, 256);
    several.world.hv.set_cap(&capped, 10);
    several.run(2 * MS);
    assert!(capped.vcpus[0].running_on().is_none(), "the domain rests");
    assert_eq!(capped.vcpus[0].time.lock().state, Runstate::Runnable, "and would run");
    several.world.hv.set_cap(&capped, 0);
    assert!(percent(&several, &capped, 1) > 99.9);
    several.world.hv.set_cap(&capped, 30);
    let got = percent(&several, &capped, 2);
    assert!((29.4..=30.6).contains(&got), "{got}");
}

#[test]
fn a_domain_that_rests_stays_paused() {
    let several = Several::new(1);
    let capped = several.hog(2, 256);
    let hv = &several.world.hv;
    hv.set_cap(&capped, 10);
    several.run(2 * MS);
    assert!(!is_runnable(&capped, &capped.vcpus[0]));
    assert!(hv.pause_domain(&capped));
    several.run(20 * MS);
    assert!(hv.sched.running(CpuId::BOOT).is_none());
    hv.unpause_domain(&capped);
    let got = percent(&several, &capped, 1);
    assert!((9.0..=10.2).contains(&got), "{got}");
}

#[test]
fn what_is_not_used_is_not_saved() {
    let several = Several::new(1);
    let capped = several.hog(1, 256);
    several.world.hv.set_cap(&capped, 20);
    several.run(50 * MS);
    several.world.sleep(&capped);
    several.run(1000 * MS);
    several.world.wake(&capped);
    let got = percent(&several, &capped, 1);
    assert!((19.6..=20.4).contains(&got), "{got}");
}
