use super::*;

fn message(len: usize) -> Vec<u8> {
    let header = XsdSockmsg { r#type: wire::XS_READ, req_id: 7, tx_id: 9, len: len as u32 };
    let mut bytes = Vec::from(header.as_bytes());
    bytes.extend((0..len).map(|at| at as u8));
    bytes
}

#[test]
fn joins_pieces_of_any_size() {
    for len in [0, 1, 100, XENSTORE_PAYLOAD_MAX] {
        for step in [1, 3, 16, 1024, 5000] {
            let mut input = Input::default();
            let bytes = [message(len), message(1)].concat();
            let mut rest = &bytes[..];
            let mut got = Vec::new();
            while !rest.is_empty() {
                let taken = input.push(&rest[..step.min(rest.len())]);
                rest = &rest[taken..];
                while let Some(message) = input.take().unwrap() {
                    got.push(message.payload.len());
                }
            }
            assert_eq!(got, [len, 1]);
            assert!(input.is_empty());
        }
    }
}

#[test]
fn a_payload_too_long_loses_the_stream() {
    let mut input = Input::default();
    input
        .push(XsdSockmsg { r#type: 2, req_id: 0, tx_id: 0, len: XENSTORE_PAYLOAD_MAX as u32 + 1 }.as_bytes());
    assert!(input.is_ready());
    assert_eq!(input.take(), Err(TooLong { len: 4097 }));
    let mut input = Input::default();
    input.push(&[0xff; 64]);
    assert!(input.take().is_err());
}

#[test]
fn output_is_fetched_in_pieces_and_events_are_merged() {
    let watch =
        |token: &[u8]| Arc::new(Watch { path: Path::root(), token: Arc::from(token), relative_to: None });
    let (one, two) = (watch(b"1"), watch(b"2"));
    let mut output = Output::default();
    output.push_reply(Message {
        header: XsdSockmsg { r#type: 1, req_id: 2, tx_id: 3, len: 2 },
        payload: vec![b'x'; 2],
    });
    output.push_event(one.clone(), Path::root());
    output.push_event(one.clone(), Path::root());
    output.push_event(two.clone(), Path::root());
    assert_eq!((output.len(), output.replies(), output.events()), (3, 1, 2));
    output.forget_watch(&two);
    let mut got = Vec::new();
    while let Some(&byte) = output.bytes().first() {
        got.push(byte);
        output.consume(1);
    }
    assert_eq!(got.len(), 16 + 2 + 16 + 4);
    assert_eq!(&got[16 + 2 + 16..], b"/\x001\0");
    assert_eq!((output.len(), output.event_bytes()), (0, 0));
}

#[test]
fn an_event_too_long_is_left_out() {
    let watch =
        Arc::new(Watch { path: Path::root(), token: Arc::from(&[b't'; 4094][..]), relative_to: None });
    let mut output = Output::default();
    output.push_event(watch.clone(), Path::absolute(b"/a").unwrap());
    assert!(output.bytes().is_empty());
    output.push_event(watch, Path::root());
    assert!(output.bytes().is_empty());
    assert_eq!(output.len(), 0);
}

#[test]
fn events_of_the_watch_that_has_most_become_one() {
    let path = |text: String| Path::absolute(text.as_bytes()).unwrap();
    let watch = |text: &str| {
        Arc::new(Watch { path: path(text.into()), token: Arc::from(&b"t"[..]), relative_to: None })
    };
    let (few, many) = (watch("/few"), watch("/many"));
    let mut output = Output::default();
    for at in 0..30 {
        output.push_event(many.clone(), path(format!("/many/{at}")));
        if at < 3 {
            output.push_event(few.clone(), path(format!("/few/{at}")));
        }
    }
    output.push_event(many.clone(), path("/many".into()));
    output.merge_events(output.event_bytes() / 2);
    let left = |output: &Output| {
        let texts = output.queue.iter().map(|out| match out {
            Outgoing::Event(watch, path) => String::from_utf8(watch.event_text(path)).unwrap(),
            Outgoing::Reply(_) => panic!(),
        });
        texts.collect::<Vec<_>>()
    };
    assert_eq!(left(&output), ["/many", "/few/0", "/few/1", "/few/2"]);
    // The same event does not wait twice.
    output.push_event(many, path("/many".into()));
    output.merge_events(0);
    assert_eq!(left(&output), ["/many", "/few"]);
    assert_eq!((output.event_bytes(), output.waiting.len()), (2 * EVENT_PLACE, 2));
    output.merge_events(0);
    while output.pop().is_some() {}
    assert_eq!((output.event_bytes(), output.waiting.len()), (0, 0));
}
