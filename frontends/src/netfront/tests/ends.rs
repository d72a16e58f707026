//! How a connection ends, whoever ends it, and that another may follow.

use super::*;

#[test]
fn ends_in_order_and_when_the_backend_ends() {
    block_on_test(async {
        let (interface, backend) = pair(None).await;
        let store = backend.store.clone();
        spawn(async move {
            while backend.store.get(&format!("{FRONT}/state")).as_deref() != Some("5") {
                time::sleep(1000).await;
            }
            backend.state(6);
        });
        interface.close().await.expect("closed");
        assert_eq!(store.get(&format!("{FRONT}/state")).as_deref(), Some("6"));
    });
    block_on_test(async {
        let (interface, backend) = pair(None).await;
        interface.send(&bytes(60, 1), PLAIN).expect("room");
        backend.state(5);
        interface.ready().await;
        assert_eq!(interface.flush(), Err(NetError::Disconnected));
        // What went through stays known.
        assert_eq!((interface.statistics().sent, interface.statistics().sent_bytes), (1, 60));
        time::sleep(1000).await;
        assert_eq!(backend.store.get(&format!("{FRONT}/state")).as_deref(), Some("6"));
    });
}

/// The backend of a connection that has ended waits for the frontend to begin anew.
#[test]
fn connects_again_after_the_backend_has_ended_the_connection() {
    block_on_test(async {
        let (interface, backend) = pair(None).await;
        let store = backend.store.clone();
        backend.state(5);
        interface.ready().await;
        let client = interface.device.store().clone();
        drop(interface);
        while store.get(&format!("{FRONT}/state")).as_deref() != Some("6") {
            time::sleep(1000).await;
        }
        backend.state(6);
        drop(backend);
        let second = store.clone();
        let (sender, receiver) = pvrt::executor::sync::oneshot();
        spawn(async move {
            while second.get(&format!("{FRONT}/state")).as_deref() != Some("1") {
                time::sleep(1000).await;
            }
            second.set(&format!("{BACK}/state"), "2");
            assert!(sender.send(Backend::start(second).await).is_ok(), "waited for");
        });
        let interface = Interface::connect(&client, FRONT).await.expect("connected again");
        let mut backend = receiver.await.expect("started");
        interface.send(&bytes(60, 1), PLAIN).expect("room");
        interface.flush().expect("connected");
        assert_eq!(backend.take().expect("sent").2, bytes(60, 1));
    });
}

/// A backend that goes while this end connects waits for this end's state.
#[test]
fn an_attempt_that_the_backend_ends_is_closed() {
    block_on_test(async {
        let store = TestStore::new();
        nodes(&store, None, &FEATURES);
        let client = store.connect();
        let backend = store.clone();
        spawn(async move {
            while backend.get(&format!("{FRONT}/state")).as_deref() != Some("4") {
                time::sleep(1000).await;
            }
            backend.set(&format!("{BACK}/state"), "5");
        });
        let failed = Interface::connect(&client, FRONT).await.err();
        assert_eq!(failed, Some(NetError::Disconnected));
        assert_eq!(store.get(&format!("{FRONT}/state")).as_deref(), Some("6"));
    });
}

/// The toolstack takes a device away that its backend has not offered yet: nobody waits for an offer for ever.
#[test]
fn a_device_that_goes_before_the_offer_ends_the_attempt() {
    block_on_test(async {
        let store = TestStore::new();
        nodes(&store, None, &FEATURES);
        store.set(&format!("{BACK}/state"), "1");
        let client = store.connect();
        spawn(async move {
            time::sleep(1000).await;
            store.remove(BACK);
        });
        let failed = Interface::connect(&client, FRONT).await.err();
        assert_eq!(failed, Some(NetError::Disconnected));
    });
}

/// What a backend says of several queues is of no matter to an end that wants one.
#[test]
fn one_queue_needs_no_number_of_queues() {
    block_on_test(async {
        for (most, is_connected) in [(1, true), (2, false)] {
            let store = TestStore::new();
            nodes(&store, None, &FEATURES);
            store.set(&format!("{BACK}/multi-queue-max-queues"), "many");
            let client = store.connect();
            if is_connected {
                spawn(async move { drop(Backend::start(store).await) });
            }
            let attempt = Interface::connect_queues(&client, FRONT, most).await;
            assert_eq!(attempt.is_ok(), is_connected, "{most}");
        }
    });
}
