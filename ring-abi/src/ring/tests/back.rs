//! What only the backend's end has: a look at a request, a late change of a response, a wish for many requests.

use super::*;

#[test]
fn a_request_is_looked_at_and_left() {
    let page = words(4);
    let (mut front, mut back) = pair(page, u32::MAX);
    assert!(matches!(back.peek_in_batch(), Ok(None)));
    front.push_request(&7).unwrap();
    let _ = front.publish_requests();
    assert_eq!(*back.peek_in_batch().unwrap().unwrap().request(), 7);
    assert_eq!((back.in_flight(), back.unconsumed()), (0, Ok(1)), "still there");
    let waiting = back.peek_in_batch().unwrap().unwrap();
    // The frontend changes its mind after the look.
    page.store_u32(slot_offset::<Words>(u32::MAX, 4), 8);
    assert_eq!(waiting.take(), 7);
    assert_eq!((back.in_flight(), back.unconsumed()), (1, Ok(0)));
}

#[test]
fn a_response_is_changed_until_published() {
    let (mut front, mut back) = pair(words(4), u32::MAX - 1);
    for _ in 0..3 {
        front.push_request(&0).unwrap();
    }
    let _ = front.publish_requests();
    let at: Vec<u32> = (1..4)
        .map(|value| {
            back.next_request().unwrap().unwrap();
            let at = back.next_response();
            back.push_response(&value);
            at
        })
        .collect();
    back.amend_response(at[1], |value| *value += 40);
    let _ = back.publish_responses();
    let got: Vec<u32> = core::iter::from_fn(|| front.next_response().unwrap()).collect();
    assert_eq!(got, [1, 42, 3]);
}

#[test]
#[should_panic = "no response of ours"]
fn a_published_response_stays() {
    let (mut front, mut back) = pair(words(4), 0);
    front.push_request(&1).unwrap();
    let _ = front.publish_requests();
    back.next_request().unwrap();
    back.push_response(&1);
    let _ = back.publish_responses();
    back.amend_response(0, |_| {});
}

#[test]
#[should_panic = "no response of ours"]
fn a_response_that_is_not_written_cannot_be_changed() {
    let (_, mut back) = pair(words(4), 9);
    back.amend_response(9, |_| {});
}

#[test]
fn the_frontend_tells_of_the_last_request_wanted() {
    let (mut front, mut back) = pair(words(8), u32::MAX - 2);
    assert_eq!(back.arm_for(5), Ok(false));
    for sent in 1..=8u32 {
        front.push_request(&sent).unwrap();
        assert_eq!(front.publish_requests(), sent == 5, "request {sent}");
        assert_eq!(back.arm_for(sent), Ok(true));
    }
    assert_eq!(back.arm_for(8), Ok(true));
}

#[test]
#[should_panic = "without a request"]
fn a_response_too_many_is_our_mistake() {
    let (mut front, mut back) = pair(words(4), 0);
    front.push_request(&1).unwrap();
    let _ = front.publish_requests();
    back.next_request().unwrap();
    back.push_response(&1);
    back.push_response(&1);
}

#[test]
fn a_batch_is_known_by_one_look() {
    let (mut front, mut back) = pair(words(4), u32::MAX - 1);
    for value in 1..=3 {
        front.push_request(&value).unwrap();
    }
    let _ = front.publish_requests();
    assert_eq!(back.waiting(1), Ok(3));
    let page = *back.page();
    // What the frontend writes now is seen when the three are used up, or when more are wanted.
    page.store_u32(REQ_PROD, 77);
    assert_eq!((back.next_in_batch(), back.waiting(2)), (Ok(Some(1)), Ok(2)));
    assert!(back.waiting(3).is_err() && back.next_request().is_err());
    assert_eq!((back.next_in_batch(), back.next_in_batch()), (Ok(Some(2)), Ok(Some(3))));
    assert!(back.next_in_batch().is_err());
    page.store_u32(REQ_PROD, 1);
    assert_eq!((back.next_in_batch(), back.in_flight()), (Ok(None), 3));
}

#[test]
fn many_responses_stand_where_single_ones_would() {
    // The indices wrap within the list, and the slots before.
    let (mut front, mut back) = pair(words(4), u32::MAX - 2);
    (1..=4).for_each(|value| front.push_request(&value).unwrap());
    let _ = front.publish_requests();
    assert_eq!(back.waiting(4), Ok(4));
    assert_eq!([back.next_known(), back.next_known(), back.next_known(), back.next_known()], [1, 2, 3, 4]);
    back.push_response(&10);
    back.push_responses([20, 30].into_iter());
    back.push_responses([].into_iter());
    back.push_responses([40].into_iter());
    assert_eq!(back.in_flight(), 0);
    let _ = back.publish_responses();
    for response in [10, 20, 30, 40] {
        assert_eq!(front.next_response(), Ok(Some(response)));
    }
}

#[test]
#[should_panic = "without a request"]
fn a_list_of_responses_is_no_longer_than_what_was_taken() {
    let (mut front, mut back) = pair(words(4), 0);
    (1..=2).for_each(|value| front.push_request(&value).unwrap());
    let _ = front.publish_requests();
    back.next_request().unwrap();
    back.push_responses([1, 2].into_iter());
}

#[test]
#[should_panic = "not known to wait"]
fn a_request_that_nobody_looked_for_is_not_taken() {
    let (mut front, mut back) = pair(words(4), 0);
    front.push_request(&1).unwrap();
    let _ = front.publish_requests();
    let _ = back.next_known();
}
