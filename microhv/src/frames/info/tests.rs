use super::*;

fn owned(id: u16) -> FrameInfo {
    let info = FrameInfo::default();
    info.using.store(UseWord::owned(DomId::new(id), 0).0, Ordering::Relaxed);
    info
}

#[test]
fn only_the_owners_frames_are_referenced() {
    let info = owned(3);
    assert!(info.get(DomId::new(3)));
    assert!(!info.get(DomId::new(2)));
    assert!(!FrameInfo::default().get(DomId::new(0)));
    assert!(!info.put());
    assert!(info.end_ownership());
    assert!(!info.end_ownership());
    assert!(info.put());
    assert!(!info.get(DomId::new(3)), "a frame without references cannot be revived");
}

#[test]
fn counts_stop_at_their_limit() {
    let info = owned(1);
    info.using.fetch_add(u64::from(COUNT_LIMIT) - 1, Ordering::Relaxed);
    assert!(!info.get(DomId::new(1)));
    info.set_kind(TypeWord::new(PageType::Writable, COUNT_LIMIT));
    assert_eq!(info.get_type(PageType::Writable), None);
}

#[test]
fn a_type_changes_only_at_count_zero() {
    let info = owned(1);
    assert_eq!(info.get_type(PageType::Writable), Some(FlushOwed(false)));
    assert_eq!(info.get_type(PageType::SegDesc), None);
    info.put_type();
    assert_eq!(info.get_type(PageType::SegDesc), Some(FlushOwed(true)));
    assert_eq!(info.page_type(), (PageType::SegDesc, 1));
}

#[test]
fn what_cpus_may_know_outlives_a_theft() {
    let info = owned(1);
    assert_eq!(info.get_type(PageType::Writable), Some(FlushOwed(false)));
    assert!(!info.is_stealable(DomId::new(1)), "it has a type reference");
    info.put_type();
    assert!(info.is_stealable(DomId::new(1)) && !info.is_stealable(DomId::new(2)));
    assert!(info.steal(DomId::new(1)));
    assert!(info.load_use().has(UseWord::KNOWN) && info.owner().is_none());
    info.give_back(DomId::new(1));
    assert!(info.load_kind().needs_flush_for(PageType::L1));
    assert_eq!(info.get_type(PageType::ReadOnly), Some(FlushOwed(true)), "and a flush is owed");
}

#[test]
fn an_orphan_is_nobodys_to_refer_to() {
    let info = owned(3);
    assert!(info.get(DomId::new(3)));
    assert!(info.orphan());
    assert!(!info.orphan());
    assert!(!info.get(DomId::new(3)), "the number may be another's by now");
    assert!(info.owner().is_some(), "and yet it is no device's");
    assert!(!info.put());
    assert!(info.put());
}

#[test]
#[should_panic(expected = "underflow")]
fn a_reference_given_back_twice_ends_the_hypervisor() {
    let info = owned(1);
    assert!(info.put());
    let _ = info.put();
}

#[test]
#[should_panic(expected = "underflow")]
fn a_type_reference_given_back_twice_ends_the_hypervisor() {
    owned(1).put_type();
}
