use alloc::collections::BTreeMap;

use super::order::children_of;
use super::*;

#[test]
fn checks_characters_and_slashes() {
    for good in ["/", "/a", "/a/b-c/D_9/@x", "/local/domain/0"] {
        assert_eq!(Path::absolute(good.as_bytes()).unwrap().to_string(), good);
    }
    for bad in ["", "a", "//", "/a/", "/a//b", "/a b", "/a.b", "/a\0", "@x", "/é"] {
        assert_eq!(Path::absolute(bad.as_bytes()), Err(XsError::Inval), "{bad:?}");
    }
}

#[test]
fn checks_lengths() {
    let path = |len: usize| [b"/".to_vec(), vec![b'a'; len - 1]].concat();
    assert!(Path::absolute(&path(XENSTORE_ABS_PATH_MAX)).is_ok());
    assert!(Path::absolute(&path(XENSTORE_ABS_PATH_MAX + 1)).is_err());
    assert!(Path::resolve(&vec![b'a'; XENSTORE_REL_PATH_MAX], 65535).is_ok());
    assert!(Path::resolve(&vec![b'a'; XENSTORE_REL_PATH_MAX + 1], 1).is_err());
}

#[test]
fn relative_paths_start_at_home() {
    assert_eq!(Path::resolve(b"device/vbd", 7).unwrap().to_string(), "/local/domain/7/device/vbd");
    for domid in [0, 7, 9, 10, 99, 100, 12345, 65535] {
        assert_eq!(Path::home(domid).to_string(), format!("/local/domain/{domid}"));
    }
    for bad in ["a/", "a//b", "a b", "a\0b", "é"] {
        assert_eq!(Path::resolve(bad.as_bytes(), 7), Err(XsError::Inval), "{bad:?}");
    }
    assert!(Path::resolve(b"", 7).is_err());
    assert!(Path::resolve(b"@releaseDomain", 7).is_err());
    assert!(Path::resolve_watch(b"@releaseDomain", 7).unwrap().is_special());
    assert!(Path::resolve_watch(b"@", 7).is_err());
    assert!(Path::resolve_watch(b"@a/b", 7).is_err());
}

#[test]
fn children_are_a_run_and_come_after_what_is_above() {
    let path = |text: &str| Path::absolute(text.as_bytes()).unwrap();
    let all = ["/", "/a", "/a-b", "/a0", "/b", "/a/b", "/a/b-c", "/a/c", "/b/b", "/a/b/c"].map(path);
    let map: BTreeMap<Path, ()> = all.iter().map(|path| (path.clone(), ())).collect();
    let sorted: Vec<_> = map.keys().collect();
    for path in all.iter().filter(|path| !path.is_root()) {
        let place = |path: &Path| sorted.iter().position(|other| **other == *path);
        assert!(place(&path.parent().unwrap()) < place(path));
    }
    let names = |of: &str| children(&map, &path(of)).map(|(path, ())| path.to_string()).collect::<Vec<_>>();
    assert_eq!(names("/"), ["/a", "/a-b", "/a0", "/b"]);
    assert_eq!(names("/a"), ["/a/b", "/a/b-c", "/a/c"]);
    assert_eq!(names("/b"), ["/b/b"]);
    assert!(names("/a-b").is_empty() && names("/nothing").is_empty());
}

/// Two paths above that have the same hash are told apart by their bytes.
#[test]
fn the_same_hash_is_no_error() {
    let path = |text: &str| {
        let mut path = Path::absolute(text.as_bytes()).unwrap();
        path.rank = Rank::new(&path.bytes, 2, 0);
        path
    };
    let all = ["/a/p", "/a/q", "/b/p", "/b/q", "/c/p"].map(path);
    let map: BTreeMap<Path, ()> = all.iter().map(|path| (path.clone(), ())).collect();
    assert_eq!(map.len(), all.len());
    assert!(all.iter().all(|path| map.contains_key(path)));
    assert!(!map.contains_key(&path("/c/q")) && path("/b/p") != path("/c/p"));
    let parent = Path::absolute(b"/a").unwrap();
    let names: Vec<_> = children_of(&map, parent.key(), 0).map(|(path, ())| path.to_string()).collect();
    assert_eq!(names, ["/a/p", "/a/q"]);
}

/// A search among paths that are as long and as like each other as possible compares the bytes of few paths.
#[test]
fn long_paths_are_compared_where_they_are_found() {
    let (dir, name) = ("d".repeat(2900), "n".repeat(2900));
    let alike = |text: &dyn Fn(usize) -> String| {
        let paths = (0..300).map(|at| (Path::absolute(text(at).as_bytes()).unwrap(), ()));
        let map: BTreeMap<Path, ()> = paths.collect();
        assert_eq!(map.len(), 300);
        for path in map.keys() {
            // The search must not use the map's own bytes, which are the same without a look at them.
            let bytes = Vec::from(path.key());
            let place = Key { rank: path.rank, bytes: &bytes };
            let before = super::super::looks::taken_bytes();
            assert!(map.contains_key(&place as &dyn Place));
            let bytes = super::super::looks::taken_bytes() - before;
            assert!(bytes <= 2 * 2950, "{bytes} of {path:.20}");
        }
    };
    alike(&|at| format!("/{dir}/{at:03}"));
    alike(&|at| format!("/{dir}{at:03}/x"));
    alike(&|at| format!("/{name}{at:03}"));
    alike(&|at| format!("/{at:03}{name}"));
}

#[test]
fn the_nearest_above_is_found_by_halving() {
    let deep = Path::absolute("/a".repeat(1536).as_bytes()).unwrap();
    assert_eq!((deep.levels(), deep.name()), (1536, &b"a"[..]));
    for there in [0, 2, 4, 1000, 1534, 3068, 3070] {
        let mut asked = 0;
        let found = deep.nearest_above(|key| {
            asked += 1;
            key.bytes.len() <= there
        });
        assert_eq!(found, there);
        assert!(asked <= 12, "{asked}");
    }
    let path = Path::absolute(b"/long-name/b").unwrap();
    assert_eq!(path.nearest_above(|_| true), 10);
    assert_eq!(path.nearest_above(|_| false), 0);
    assert_eq!(path.until(10).to_string(), "/long-name");
}

#[test]
fn lists_what_is_above() {
    let path = Path::absolute(b"/a/b").unwrap();
    let keys: Vec<&[u8]> = path.keys_above().map(|key| key.bytes).collect();
    assert_eq!(keys, [&b""[..], b"\0a", b"\0a\0b"]);
    assert_eq!(Path::root().keys_above().count(), 1);
    let special = Path::special("@releaseDomain");
    assert!(path.keys_above().all(|key| key == Key::of(key.bytes)));
    assert_eq!(special.keys_above().map(|key| key.bytes).collect::<Vec<_>>(), [&b""[..], b"@releaseDomain"]);
    assert_eq!(path.parent().unwrap().to_string(), "/a");
    assert_eq!(path.parent().unwrap().parent(), Some(Path::root()));
    assert_eq!(Path::root().parent(), None);
    // Slashes at each place of a word, and parts of each length.
    for from in 1..40 {
        let text: String = (0..20).map(|at| format!("/{}", "x".repeat((at * from) % 23 + 1))).collect();
        let path = Path::absolute(text.as_bytes()).unwrap();
        let cuts: Vec<_> = path.keys_above().map(|key| key.bytes.len()).collect();
        let slashes = path.bytes.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
        assert_eq!(cuts, slashes.chain([path.bytes.len()]).collect::<Vec<_>>());
        assert!(path.keys_above().all(|key| key == Key::of(key.bytes)));
        assert_eq!(path.levels(), 20);
    }
    let long = Path::absolute(format!("/{}/{}", "a".repeat(100), "b".repeat(100)).as_bytes()).unwrap();
    assert!(long.keys_above().all(|key| key == Key::of(key.bytes)));
}

#[test]
fn finds_what_is_at_or_above_in_a_list() {
    let path = |text: &str| Path::absolute(text.as_bytes()).unwrap();
    let mut list = ["/a/b", "/a/c/d", "/x", "/a/b", "/y/z"].map(path);
    list.sort();
    let found = |text: &str| -> Vec<String> {
        let key = path(text);
        at_or_above(&list, |path| path, key.place()).map(|path| path.to_string()).collect()
    };
    assert_eq!(found("/a/b"), ["/a/b", "/a/b"]);
    assert_eq!(found("/a/b/c/d/e"), ["/a/b", "/a/b"]);
    assert_eq!(found("/x/y"), ["/x"]);
    assert_eq!(found("/a/c/d/e"), ["/a/c/d"]);
    for none in ["/", "/a", "/a/bc", "/xy", "/a/c", "/y"] {
        assert!(found(none).is_empty(), "{none}");
    }
}
