use super::*;

fn path(text: &str) -> Path {
    Path::absolute(text.as_bytes()).unwrap()
}

fn put(store: &mut Store, text: &str, owner: u16) {
    let node = store.new_node(Arc::from(&b"v"[..]), Perms::owned_by(owner, Access::None));
    store.put(&path(text), node);
}

/// Sweeps to the end, and returns the changes.
fn swept(store: &mut Store, outcome: Outcome) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut sweep = match outcome {
        Outcome::Change(change) => return Vec::from([change]),
        Outcome::Sweep(sweep) => sweep,
    };
    loop {
        match store.sweep(sweep) {
            Ok((rest, change)) => {
                changes.extend(change);
                sweep = rest;
            }
            Err(top) => {
                changes.push(top);
                return changes;
            }
        }
    }
}

fn forget(store: &mut Store, domid: u16) -> Vec<Change> {
    let (mut after, mut changes) = (None, Vec::new());
    while let Some((path, outcome)) = store.forget_next(domid, after.as_ref()) {
        after = Some(path);
        changes.extend(outcome.into_iter().flat_map(|outcome| swept(store, outcome)));
    }
    changes
}

#[test]
fn what_is_below_a_removed_node_is_gone_at_once_and_taken_out_in_steps() {
    let mut store = Store::new();
    for text in ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/e", "/ab"] {
        put(&mut store, text, 3);
    }
    let Some(Outcome::Sweep(sweep)) = store.remove(&path("/a")) else { panic!() };
    for text in ["/a", "/a/b", "/a/b/c/d", "/a/e"] {
        assert!(store.get(&path(text)).is_none(), "{text}");
    }
    let children = |store: &Store, text| store.children(&path(text)).count();
    assert_eq!((children(&store, "/"), children(&store, "/a/b")), (1, 0));
    // The nodes are made again before the old ones are taken out.
    for text in ["/a", "/a/b", "/a/b/x"] {
        put(&mut store, text, 4);
    }
    assert_eq!((children(&store, "/a"), children(&store, "/a/b")), (1, 1));
    assert_eq!(store.take_replaced().len(), 1, "/a/b");
    let changes = swept(&mut store, Outcome::Sweep(sweep));
    let told: Vec<_> = changes.iter().map(|change| change.path.to_string()).collect();
    assert_eq!(told, ["/a/e", "/a/b/c/d", "/a/b/c", "/a"]);
    assert_eq!((store.account(3).nodes, store.account(4).nodes, store.len()), (1, 3, 5));
    assert!(store.burials.is_empty() && store.get(&path("/a/b/x")).is_some());
}

#[test]
fn lists_children_and_subtrees_in_order() {
    let mut store = Store::new();
    for text in ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/b-c", "/a/b0", "/b", "/a-b"] {
        put(&mut store, text, 0);
    }
    let children = |path: &Path| store.children(path).cloned().collect::<Vec<_>>();
    let texts = |paths: Vec<Path>| paths.iter().map(|p| p.to_string()).collect::<Vec<_>>();
    assert_eq!(texts(children(&Path::root())), ["/a", "/a-b", "/b"]);
    assert_eq!(texts(children(&path("/a"))), ["/a/b", "/a/b-c", "/a/b0"]);
    assert!(children(&path("/b")).is_empty());
}

#[test]
fn accounts_balance() {
    let mut store = Store::new();
    put(&mut store, "/a", 3);
    put(&mut store, "/a/b", 3);
    put(&mut store, "/a/b", 4);
    assert_eq!(store.account(3).nodes, 1);
    assert_eq!(store.account(4).nodes, 1);
    let removed = store.remove(&path("/a")).unwrap();
    swept(&mut store, removed);
    assert_eq!(store.account(3), Account::default());
    assert_eq!(store.accounts().count(), 1, "dom0 alone, for the root");
}

#[test]
fn a_dead_domain_leaves_nothing() {
    let mut store = Store::new();
    put(&mut store, "/d", 0);
    put(&mut store, "/d/own", 5);
    put(&mut store, "/d/own/dom0s", 0);
    put(&mut store, "/d/other", 6);
    let node = store.new_node(Arc::from(&b""[..]), Perms::shared_with(0, 5));
    store.put(&path("/d/shared"), node);
    assert_eq!(forget(&mut store, 5).len(), 2);
    assert_eq!(store.len(), 4);
    assert_eq!(store.get(&path("/d/shared")).unwrap().perms.entries().len(), 1);
    assert_eq!(store.account(5), Account::default());
}

#[test]
fn the_root_outlives_its_owner() {
    let mut store = Store::new();
    put(&mut store, "/", 5);
    forget(&mut store, 5);
    assert_eq!(store.get(&Path::root()).unwrap().perms.owner(), 0);
}
