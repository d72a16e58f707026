//! Random requests of several domains, which die and come back: the accounts always balance, and in the end nothing is
//! left.

use proptest::prelude::*;
use ring_abi::io::xs_wire as wire;

use super::Bed;

#[derive(Clone, Debug)]
enum Step {
    /// A request of a domain, within the domain's latest transaction or without a transaction.
    Ask(u16, u32, bool, Vec<u8>),
    /// dom0 removes something.
    Rm(String),
    Reconnect(u16),
    Die(u16),
}

fn path() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "a",
        "a/b",
        "a/b/c",
        "d",
        "/local/domain/1",
        "/local/domain/1/a",
        "/local/domain/1/a/b",
        "/local/domain/2/a",
        "/local/domain/2/a/x",
        "/",
        "@releaseDomain",
        "bad//path",
    ])
    .prop_map(str::to_owned)
}

fn ask() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let one = |kind: u32| path().prop_map(move |path| (kind, format!("{path}\0").into_bytes()));
    let two = |kind: u32, last: &'static str| {
        path().prop_map(move |path| (kind, format!("{path}\0{last}").into_bytes()))
    };
    prop_oneof![
        4 => (path(), 0usize..2100).prop_map(|(path, len)| {
            (wire::XS_WRITE, [path.as_bytes(), &vec![0; len + 1]].concat())
        }),
        3 => one(wire::XS_RM),
        2 => one(wire::XS_MKDIR),
        2 => one(wire::XS_DIRECTORY),
        2 => one(wire::XS_READ),
        1 => two(wire::XS_SET_PERMS, "n1\0b2\0"),
        1 => two(wire::XS_SET_PERMS, "b2\0r1\0"),
        2 => two(wire::XS_WATCH, "t\0"),
        1 => two(wire::XS_UNWATCH, "t\0"),
        2 => Just((wire::XS_TRANSACTION_START, b"\0".to_vec())),
        2 => Just((wire::XS_TRANSACTION_END, b"T\0".to_vec())),
        1 => Just((wire::XS_TRANSACTION_END, b"F\0".to_vec())),
        1 => Just((wire::XS_RESET_WATCHES, b"\0".to_vec())),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (1u16..=3, ask(), any::<bool>()).prop_map(|(domid, (kind, payload), within)| {
            Step::Ask(domid, kind, within, payload)
        }),
        2 => path().prop_map(Step::Rm),
        1 => (1u16..=3).prop_map(Step::Reconnect),
        1 => (1u16..=3).prop_map(Step::Die),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn accounts_balance(steps in prop::collection::vec(step(), 1..150), reluctant: bool) {
        let mut bed = Bed::new(3);
        if reluctant {
            bed.server.step_work = 1;
        }
        let mut latest = [0u32; 4];
        let mut alive = [true; 4];
        for step in steps {
            match step {
                Step::Ask(domid, kind, within, payload) if alive[usize::from(domid)] => {
                    let within = within || kind == wire::XS_TRANSACTION_END;
                    let tx_id = if within && kind != wire::XS_TRANSACTION_START { latest[usize::from(domid)] } else { 0 };
                    let (got, reply) = bed.ask(domid, kind, tx_id, &payload);
                    if got == wire::XS_TRANSACTION_START {
                        let digits = std::str::from_utf8(&reply[..reply.len() - 1]).unwrap();
                        latest[usize::from(domid)] = digits.parse().unwrap();
                    }
                }
                Step::Rm(path) => drop(bed.dom0(wire::XS_RM, path.as_bytes())),
                Step::Reconnect(domid) => {
                    let conn = bed.rings[&domid].0;
                    bed.server.reconnect(conn);
                }
                Step::Die(domid) => {
                    bed.server.domain_destroyed(domid);
                    alive[usize::from(domid)] = false;
                }
                Step::Ask(..) => {}
            }
            bed.server.check_accounts();
        }
        for domid in 1..=3 {
            bed.server.domain_destroyed(domid);
        }
        bed.settle();
        bed.server.check_accounts();
        let figures = bed.server.figures();
        prop_assert_eq!((figures.watches, figures.transactions, figures.introduced), (0, 0, 0));
        prop_assert_eq!((figures.connections, figures.domains.len()), (1, 1), "dom0 alone has anything");
    }
}
