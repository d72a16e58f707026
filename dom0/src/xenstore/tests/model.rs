//! Random operations, with transactions, against a plain map of paths.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ring_abi::io::xs_wire::XsdSockmsg;
use zerocopy::IntoBytes;

use super::super::*;

type Tree = BTreeMap<String, String>;
type Log = Vec<(Op, Result<String, XsError>)>;

#[derive(Clone, Debug)]
enum Op {
    Write(String, String),
    Mkdir(String),
    Rm(String),
    Read(String),
    List(String),
    Begin,
    End(bool),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-b", "B"]), 1..4)
        .prop_map(|parts| "/".to_owned() + &parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), "[a-z]{0,3}").prop_map(|(path, value)| Op::Write(path, value)),
        1 => path().prop_map(Op::Mkdir),
        3 => path().prop_map(Op::Rm),
        2 => path().prop_map(Op::Read),
        2 => path().prop_map(Op::List),
        1 => Just(Op::Begin),
        1 => any::<bool>().prop_map(Op::End),
    ]
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').skip(1).map(|(at, _)| path[..at].to_owned()).collect()
}

fn apply(tree: &mut Tree, op: &Op) -> Result<String, XsError> {
    let below = |top: &str| top.to_owned() + "/";
    match op {
        Op::Write(path, value) => {
            for parent in parents(path) {
                tree.entry(parent).or_default();
            }
            tree.insert(path.clone(), value.clone());
            Ok(String::new())
        }
        Op::Mkdir(path) => {
            for node in parents(path).into_iter().chain([path.clone()]) {
                tree.entry(node).or_default();
            }
            Ok(String::new())
        }
        Op::Rm(path) => {
            if parents(path).last().is_some_and(|parent| !tree.contains_key(parent)) {
                return Err(XsError::NoEnt);
            }
            tree.retain(|node, _| node != path && !node.starts_with(&below(path)));
            Ok(String::new())
        }
        Op::Read(path) => tree.get(path).cloned().ok_or(XsError::NoEnt),
        Op::List(path) => {
            if !tree.contains_key(path) {
                return Err(XsError::NoEnt);
            }
            let prefix = below(path);
            let names = tree.keys().filter_map(|node| node.strip_prefix(&prefix));
            let mut names: Vec<_> = names.filter(|name| !name.contains('/')).collect();
            names.sort();
            Ok(names.join(","))
        }
        Op::Begin | Op::End(_) => Ok(String::new()),
    }
}

fn run(nodes: &impl Nodes, op: &Op) -> Result<String, XsError> {
    match op {
        Op::Write(path, value) => nodes.write(path, value).map(|()| String::new()),
        Op::Mkdir(path) => nodes.mkdir(path).map(|()| String::new()),
        Op::Rm(path) => nodes.rm(path).map(|()| String::new()),
        Op::Read(path) => nodes.read_str(path),
        Op::List(path) => nodes.directory(path).map(|names| names.join(",")),
        Op::Begin | Op::End(_) => Ok(String::new()),
    }
}

fn dump(client: &Client, top: &str, tree: &mut Tree) {
    for name in client.directory(top).unwrap() {
        let path = format!("{}/{name}", top.trim_end_matches('/'));
        tree.insert(path.clone(), client.read_str(&path).unwrap());
        dump(client, &path, tree);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Two clients take turns, and each may be in a transaction. Operations on the tree itself answer as the model
    /// does. A transaction that commits answers as if the whole transaction had run at the moment of the commit; a
    /// transaction that does not commit leaves no trace.
    #[test]
    fn behaves_as_a_map(ops in prop::collection::vec((any::<bool>(), op()), 1..80), reluctant: bool, steps in 0usize..4) {
        // Work that is left for later is hidden meanwhile, and nobody can tell.
        let store = if reluctant { Xenstore::reluctant() } else { Xenstore::new(Quotas::XEN) };
        let clients = [store.client(), store.client()];
        let mut tree = Tree::new();
        let mut open: [Option<(Transaction<'_>, Log)>; 2] = [None, None];
        for (second, op) in ops {
            let who = usize::from(second);
            match (&op, &mut open[who]) {
                (Op::Begin, slot @ None) => *slot = Some((clients[who].transaction().unwrap(), Vec::new())),
                (Op::End(commit), slot @ Some(_)) => {
                    let (transaction, log) = slot.take().unwrap();
                    if *commit && transaction.commit().is_ok() {
                        for (op, answer) in log {
                            prop_assert_eq!(apply(&mut tree, &op), answer, "{:?}", op);
                        }
                    }
                }
                (_, Some((transaction, log))) => {
                    let answer = run(transaction, &op);
                    log.push((op, answer));
                }
                (_, None) => prop_assert_eq!(run(&clients[who], &op), apply(&mut tree, &op), "{:?}", op),
            }
            let mut found = Tree::new();
            dump(&clients[0], "/", &mut found);
            prop_assert_eq!(&found, &tree);
            if reluctant {
                for _ in 0..steps {
                    store.settle_some();
                }
            } else {
                while store.settle_some() {}
                prop_assert_eq!(store.figures().nodes, tree.len() + 1);
            }
        }
        drop(open);
        while store.settle_some() {}
        prop_assert_eq!(store.figures().nodes, tree.len() + 1, "nothing hidden is left");
        clients[0].rm("/a").unwrap();
        let figures = store.figures();
        prop_assert_eq!(figures.transactions, 0);
    }

    /// Any bytes on a ring are answered or end the connection; nothing panics.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000), kind in 0u32..25, len in 0u32..64) {
        let mut bed = super::Bed::new(1);
        let header = XsdSockmsg { r#type: kind, req_id: 1, tx_id: 0, len };
        let ring = &mut bed.rings.get_mut(&1).unwrap().1;
        ring.to_server.extend(header.as_bytes());
        ring.to_server.extend(bytes);
        let _ = bed.run(1);
    }
}
