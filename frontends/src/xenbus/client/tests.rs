use super::super::testing::TestStore;
use super::*;
use pvrt::executor::{block_on_test, join_all, time};

#[test]
fn values_go_and_come() {
    let store = TestStore::new();
    block_on_test(async {
        let client = store.connect();
        client.write("data/a", "one").await.expect("written");
        client.write("data/b", [0u8, 255, 1]).await.expect("written");
        assert_eq!(client.read_str("data/a").await, Ok("one".to_string()));
        assert_eq!(client.read("data/b").await, Ok(alloc::vec![0, 255, 1]));
        assert_eq!(client.directory("data").await, Ok(alloc::vec!["a".to_string(), "b".to_string()]));
        assert_eq!(client.read("data/c").await, Err(StoreError::Refused(Errno::ENOENT)));
        assert!(matches!(client.read_as::<u32>("data/a").await, Err(StoreError::BadValue(_))));
        assert_eq!(client.read_or("data/c", 9u32).await, Ok(9));
        client.rm("data").await.expect("removed");
        assert!(client.directory("data").await.expect_err("gone").is_missing());
    });
}

#[test]
fn long_values_and_many_requests_at_once() {
    let store = TestStore::new();
    block_on_test(async {
        let client = store.connect();
        let all = (0..40u8).map(|i| {
            let client = client.clone();
            async move {
                let path = alloc::format!("data/{i}");
                client.write(&path, alloc::vec![i; 3000]).await?;
                client.read(&path).await
            }
        });
        for (i, value) in join_all(all).await.into_iter().enumerate() {
            assert_eq!(value, Ok(alloc::vec![i as u8; 3000]));
        }
        assert_eq!(client.write("x", [0; 4096]).await, Err(StoreError::BadRequest));
        assert_eq!(client.read("a\0b").await, Err(StoreError::BadRequest));
    });
}

#[test]
fn a_watch_fires_at_once_and_on_change() {
    let store = TestStore::new();
    block_on_test(async {
        let client = store.connect();
        let watch = client.watch("data").await.expect("watching");
        assert_eq!(watch.changed().await, Some(()));
        client.write("data/x", "1").await.expect("written");
        assert_eq!(watch.changed().await, Some(()));
        client.write("other", "1").await.expect("written");
        assert!(time::timeout(1_000_000, watch.changed()).await.is_err());
        drop(watch);
        client.read("other").await.expect("the connection lives");
        assert_eq!(store.watch_count(), 0);
    });
}

#[test]
fn a_conflict_is_false_and_a_drop_aborts() {
    let store = TestStore::new();
    block_on_test(async {
        let client = store.connect();
        let first = client.begin().await.expect("begun");
        first.write("data/n", "1").await.expect("written");
        client.write("data/other", "2").await.expect("written");
        assert_eq!(first.commit().await, Ok(false));
        assert!(client.read("data/n").await.is_err());
        let second = client.begin().await.expect("begun");
        second.write("data/n", "2").await.expect("written");
        assert_eq!(second.commit().await, Ok(true));
        assert_eq!(client.read_as("data/n").await, Ok(2u32));
        drop(client.begin().await.expect("begun"));
        client.read("data/n").await.expect("read");
        assert_eq!(store.open_transactions(), 0);
    });
}

#[test]
fn a_broken_ring_fails_all() {
    let store = TestStore::new();
    block_on_test(async {
        let client = store.connect();
        let watch = client.watch("data").await.expect("watching");
        watch.changed().await;
        store.break_ring();
        assert_eq!(client.read("data").await, Err(StoreError::Broken));
        assert_eq!(watch.changed().await, None);
        assert_eq!(client.read("data").await, Err(StoreError::Broken));
    });
}
