//! What the store really keeps for a domain, as the heap counts it, against what is charged and what was promised.

use proptest::prelude::*;
use pvrt::Account;
use ring_abi::io::xs_wire::{self as wire, XsdSockmsg};

use super::super::stream::Message;
use super::super::*;
use super::Bed;

/// A test bed whose bytes an account counts.
struct Scales {
    account: Account,
    bed: Bed,
    /// Bytes that are there before the domain does anything, beyond what is charged for the domain.
    empty: usize,
}

impl Scales {
    fn new() -> Scales {
        let account = Account::claim(64 << 20).unwrap();
        let bed = account.charge(|| Bed::new(2));
        let mut scales = Scales { account, bed, empty: 0 };
        scales.empty = scales.used();
        scales
    }

    fn used(&self) -> usize {
        self.account.figures().unwrap().used
    }

    fn run<R>(&mut self, act: impl FnOnce(&mut Bed) -> R) -> R {
        let Scales { account, bed, .. } = self;
        account.charge(|| act(bed))
    }

    /// Sends a request of domain 1. Nobody fetches the reply and the events.
    fn unheard(&mut self, kind: u32, tx_id: u32, payload: &[u8]) {
        let header = XsdSockmsg { r#type: kind, req_id: 1, tx_id, len: payload.len() as u32 };
        let payload = payload.to_vec();
        let message = self.run(|_| Message { header, payload: payload.clone() });
        self.run(|bed| {
            let conn = bed.rings[&1].0;
            bed.server.handle(conn, &message);
            while bed.server.settle_connection(conn) {}
        });
    }

    /// Checks that the real bytes are no more than the charged bytes, and those no more than the promised bytes.
    fn weigh(&mut self, what: &str) -> (usize, usize) {
        for (_, ring) in self.bed.rings.values_mut() {
            (ring.to_server, ring.from_server) = Default::default();
        }
        let real = self.used().saturating_sub(self.empty);
        let charged = self.bed.server.kept_for(self.bed.rings[&1].0);
        println!("{what}: {real} bytes, {charged} charged, {} promised", Quotas::XEN.most_kept());
        assert!(real <= charged, "{what}: {real} bytes, {charged} charged");
        assert!(charged <= Quotas::XEN.most_kept(), "{what}: {charged} charged");
        (real, charged)
    }

    /// Sends requests until one is refused, at most `most`, and returns their number.
    fn fill(&mut self, kind: u32, tx_id: u32, most: usize, payload: impl Fn(usize) -> Vec<u8>) -> usize {
        self.run(|bed| (0..most).take_while(|&at| bed.ask(1, kind, tx_id, &payload(at)).0 == kind).count())
    }
}

const FIVE: &str = "n1\0b2\0b3\0b4\0b5\0";

/// Nodes, watches, transactions whose permissions are new, and replies and events that nobody fetches.
#[test]
fn all_at_once_is_no_more_than_was_promised() {
    let mut scales = Scales::new();
    scales.fill(wire::XS_WRITE, 0, 8, |at| format!("attr/{at}\0").into_bytes());
    scales.fill(wire::XS_WATCH, 0, 128, |at| format!("attr\0{at}\0").into_bytes());
    scales.weigh("watches");
    let nodes = scales.fill(wire::XS_MKDIR, 0, 1000, |at| format!("data/{at:03}\0").into_bytes());
    assert!(nodes > 950, "{nodes}");
    scales.weigh("nodes");
    let perms = |at: usize| format!("data/{at:03}\0{FIVE}").into_bytes();
    scales.fill(wire::XS_SET_PERMS, 0, 300, perms);
    scales.weigh("permissions");
    for _ in 0..Quotas::XEN.transactions {
        let (kind, id) = scales.run(|bed| bed.ask(1, wire::XS_TRANSACTION_START, 0, b"\0"));
        if kind == wire::XS_TRANSACTION_START {
            let id = std::str::from_utf8(&id[..id.len() - 1]).unwrap().parse().unwrap();
            scales.fill(wire::XS_SET_PERMS, id, nodes, perms);
        }
    }
    let before = scales.weigh("transactions");
    for at in 0..5 {
        scales.unheard(wire::XS_WRITE, 0, format!("attr/{at}\0").as_bytes());
    }
    for _ in 0..13 {
        scales.unheard(wire::XS_DIRECTORY, 0, b"data\0");
    }
    let (real, charged) = scales.weigh("messages");
    // The transactions by themselves, too, are charged at least for what they take.
    let (more, charged_more) = (real - before.0, charged - before.1);
    assert!(more > 0 && more <= charged_more, "{more} more, {charged_more} charged");
    assert!(charged > Quotas::XEN.memory_bytes, "all quotas are filled");
    scales.run(|bed| bed.server.check_accounts());
}

#[test]
fn misses_in_transactions_are_charged() {
    let mut scales = Scales::new();
    for _ in 0..Quotas::XEN.transactions {
        let (kind, id) = scales.run(|bed| bed.ask(1, wire::XS_TRANSACTION_START, 0, b"\0"));
        if kind != wire::XS_TRANSACTION_START {
            break;
        }
        let id: u32 = std::str::from_utf8(&id[..id.len() - 1]).unwrap().parse().unwrap();
        for at in 0..1023 {
            let reply = scales.run(|bed| bed.ask(1, wire::XS_READ, id, format!("{at:04}\0").as_bytes()).1);
            if reply != b"ENOENT\0" {
                break;
            }
        }
    }
    scales.weigh("misses");
    // Transactions count until they are freed.
    scales.run(|bed| {
        bed.send(1, wire::XS_RESET_WATCHES, 0, b"\0");
        let (conn, ring) = bed.rings.get_mut(&1).unwrap();
        while bed.server.exchange(*conn, ring).unwrap().again {}
    });
    let (_, charged) = scales.weigh("reset");
    assert!(charged < 64 << 10, "{charged}");
}

/// Neither same-length writes in transactions nor permissions escape the quota.
#[test]
fn what_is_accounted_is_what_was_asked_for() {
    let mut bed = Bed::new(2);
    let big = vec![b'x'; 2048];
    for at in 0..38 {
        bed.ok(1, wire::XS_WRITE, 0, &[format!("n{at}\0").as_bytes(), &big].concat());
    }
    let most = |bed: &Bed| assert!(bed.server.store.account(1).bytes() <= Quotas::XEN.memory_bytes);
    let transactions: Vec<_> = (0..10).map(|_| bed.begin(1)).collect();
    for tx in &transactions {
        for at in 0..38 {
            bed.ask(1, wire::XS_READ, *tx, format!("n{at}\0").as_bytes());
            bed.ask(1, wire::XS_WRITE, *tx, &[format!("n{at}\0").as_bytes(), &big].concat());
        }
        most(&bed);
    }
    // A commit asks for what it adds, as well.
    for tx in transactions {
        bed.ask(1, wire::XS_TRANSACTION_END, tx, b"T\0");
        most(&bed);
    }
    let mut made = 0;
    while bed.ask(1, wire::XS_WRITE, 0, &[format!("m{made}\0").as_bytes(), &big[..500]].concat()).0
        == wire::XS_WRITE
    {
        made += 1;
    }
    assert!(made > 500);
    for at in 0..made {
        bed.ask(1, wire::XS_SET_PERMS, 0, format!("m{at}\0{FIVE}").as_bytes());
    }
    most(&bed);
    assert_eq!(bed.err(1, wire::XS_SET_PERMS, 0, format!("m{}\0{FIVE}", made - 1).as_bytes()), "ENOMEM");
    // Another domain that may write there does not fill it either.
    for at in 0..10 {
        bed.ok(1, wire::XS_SET_PERMS, 0, format!("m{at}\0n1\0b2\0").as_bytes());
    }
    let mut replies = Vec::new();
    for at in 0..10 {
        let path = format!("/local/domain/1/m{at}\0");
        replies.push(bed.ask(2, wire::XS_WRITE, 0, &[path.as_bytes(), &big].concat()).1);
        most(&bed);
    }
    assert!(replies.iter().any(|reply| reply == b"ENOMEM\0"));
}

/// A domain changes nodes that a client within dom0 watches, and the client takes no events.
#[test]
fn events_of_dom0s_clients_are_few() {
    let mut scales = Scales::new();
    scales.run(|bed| {
        bed.ok(1, wire::XS_WRITE, 0, b"vbd/state\x001");
        bed.server.watch(bed.dom0, b"/local/domain/1/vbd/state", b"front").unwrap();
        bed.server.flush();
    });
    let before = scales.used();
    let long = "p".repeat(85);
    let mut took = 0;
    for at in 0..1020 {
        let path = format!("vbd/state/{long}{at:04}\0").into_bytes();
        scales.run(|bed| bed.ok(1, wire::XS_WRITE, 0, &path));
        scales.run(|bed| bed.ok(1, wire::XS_RM, 0, &path));
        took = took.max(scales.used() - before);
    }
    assert!(took <= Quotas::XEN.most_for_client(), "{took}");
}

/// A client that acts for a domain is charged to that domain's account.
#[test]
fn clients_are_charged_to_whom_they_act_for() {
    let store = Xenstore::new(Quotas::XEN);
    let account = Account::claim(1 << 20).unwrap();
    let used = || account.figures().unwrap().used;
    let client = account.charge(|| store.client());
    assert_eq!(used(), Quotas::XEN.most_for_client());
    drop(client);
    assert_eq!(used(), 0);
}

/// Requests of one domain, in any mix.
fn mix() -> impl Strategy<Value = Vec<(u32, Vec<u8>, usize, bool)>> {
    let path = || {
        prop_oneof![
            (0u32..1500).prop_map(|at| format!("d/{at}")),
            (0u32..200, 0usize..300).prop_map(|(at, len)| format!("e/{}/{at}", "p".repeat(len + 1))),
            Just("d".to_owned()),
        ]
    };
    let request = prop_oneof![
        8 => (path(), prop_oneof![3 => 0usize..40, 1 => 0usize..2049]).prop_map(|(path, len)| {
            (wire::XS_WRITE, [path.as_bytes(), &vec![0; len + 1]].concat())
        }),
        4 => path().prop_map(|path| (wire::XS_READ, format!("{path}\0").into_bytes())),
        3 => path().prop_map(|path| (wire::XS_SET_PERMS, format!("{path}\0{FIVE}").into_bytes())),
        1 => path().prop_map(|path| (wire::XS_RM, format!("{path}\0").into_bytes())),
        1 => Just((wire::XS_DIRECTORY, b"d\0".to_vec())),
        3 => (path(), 0usize..100).prop_map(|(path, len)| {
            (wire::XS_WATCH, format!("{path}\0{}\0", "t".repeat(len)).into_bytes())
        }),
        1 => path().prop_map(|path| (wire::XS_UNWATCH, format!("{path}\0\0").into_bytes())),
        1 => Just((wire::XS_TRANSACTION_START, b"\0".to_vec())),
        1 => Just((wire::XS_TRANSACTION_END, b"T\0".to_vec())),
    ];
    prop::collection::vec((request, 0usize..40, any::<bool>()), 1..120).prop_map(|all| {
        all.into_iter().map(|((kind, payload), times, heard)| (kind, payload, times, heard)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever a domain does, real bytes are charged, and charged bytes were promised.
    #[test]
    fn real_is_charged_and_charged_is_promised(requests in mix()) {
        let mut scales = Scales::new();
        let (mut tx, mut waiting) = (0, 0);
        for (kind, payload, times, heard) in requests {
            for round in 0..=times {
                // Runs of like requests fill quotas.
                let payload = match payload.iter().position(|&byte| byte == 0) {
                    Some(end) if kind <= wire::XS_SET_PERMS && payload[0] != 0 && times > 20 => {
                        [&payload[..end], format!("-{round}").as_bytes(), &payload[end..]].concat()
                    }
                    _ => payload.clone(),
                };
                let within = if kind == wire::XS_TRANSACTION_START || kind == wire::XS_WATCH { 0 } else { tx };
                let conn = scales.bed.rings[&1].0;
                if !heard && waiting < Quotas::XEN.outstanding && scales.bed.server.actor(conn).is_ok() {
                    waiting += 1;
                    scales.unheard(kind, within, &payload);
                } else {
                    waiting = 0;
                    scales.run(|bed| {
                        if bed.server.actor(conn).is_err() {
                            bed.server.reconnect(conn);
                        }
                        bed.send(1, kind, within, &payload);
                        for (header, reply) in bed.run(1).unwrap_or_default() {
                            if header.r#type == wire::XS_TRANSACTION_START
                                && let Ok(text) = std::str::from_utf8(&reply[..reply.len() - 1])
                            {
                                tx = text.parse().unwrap_or(0);
                            }
                        }
                    });
                }
                if kind == wire::XS_TRANSACTION_END {
                    tx = 0;
                }
            }
            scales.weigh("a mix");
        }
        scales.run(|bed| {
            bed.server.check_accounts();
            bed.server.domain_destroyed(1);
            bed.settle();
        });
        prop_assert_eq!(scales.bed.server.store.account(1), Default::default());
    }
}
