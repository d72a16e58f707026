//! The two words under the model checker.

use loom::sync::Arc;
use loom::thread;

use super::*;

const OWNER: DomId = DomId::new(1);

fn owned() -> FrameInfo {
    let info = FrameInfo::default();
    info.publish(UseWord::owned(OWNER, 0), TypeWord::CLEAN);
    info
}

/// Changes the contents of a frame, in steps that another may come between: a change is lost where nothing orders the two.
fn touch(contents: &AtomicU64) {
    let seen = contents.load(Ordering::Relaxed);
    contents.store(seen + 1, Ordering::Relaxed);
}

/// A copy needs no lock, and a frame becomes a table under its owner's.
#[test]
fn a_frame_is_written_or_a_table() {
    loom::model(|| {
        let frame = Arc::new((owned(), AtomicU64::new(0)));
        let writer = {
            let frame = Arc::clone(&frame);
            thread::spawn(move || {
                let (info, contents) = &*frame;
                let is_written = info.get_type(PageType::Writable).is_some();
                if is_written {
                    touch(contents);
                    info.put_type();
                }
                u64::from(is_written)
            })
        };
        let (info, contents) = &*frame;
        let mut touched = 0;
        for _ in 0..2 {
            let now = info.load_kind();
            if now.count() == 0 && info.replace_kind(now, TypeWord::new(PageType::L1, 1)).is_some() {
                touch(contents);
                touched += 1;
                info.set_kind(TypeWord(info.load_kind().0 | TypeWord::VALIDATED));
                info.set_kind(TypeWord::new(PageType::L1, 0));
            }
        }
        touched += writer.join().unwrap();
        assert_eq!((info.load_kind().count(), contents.load(Ordering::Relaxed)), (0, touched));
    });
}

#[test]
fn a_page_that_is_lent_has_its_type_before_its_owner() {
    loom::model(|| {
        let info = Arc::new(FrameInfo::default());
        let lender = {
            let info = Arc::clone(&info);
            thread::spawn(move || {
                let kind = TypeWord::new(PageType::ReadOnly, 1);
                info.publish(UseWord::owned(OWNER, UseWord::LENT), kind);
            })
        };
        while !info.get(OWNER) {
            thread::yield_now();
        }
        assert_eq!(info.get_type(PageType::Writable), None, "the hypervisor's page is for reading");
        assert!(!info.put());
        lender.join().unwrap();
    });
}

/// The owner's reference, and another that comes and goes: the frame is freed once, by who gives the last one back.
#[test]
fn the_last_reference_frees_once() {
    loom::model(|| {
        let info = Arc::new(owned());
        let user = {
            let info = Arc::clone(&info);
            thread::spawn(move || info.get(OWNER) && info.put())
        };
        let freed = info.end_ownership() && info.put();
        assert!(freed ^ user.join().unwrap());
        assert!(!info.get(OWNER));
    });
}

/// An exchange takes a frame to which nobody else refers.
#[test]
fn a_frame_is_stolen_or_referred_to() {
    loom::model(|| {
        let info = Arc::new(owned());
        let user = {
            let info = Arc::clone(&info);
            thread::spawn(move || info.get(OWNER))
        };
        let is_stolen = info.steal(OWNER);
        assert!(is_stolen ^ user.join().unwrap());
    });
}

#[test]
fn two_that_take_a_type_agree() {
    loom::model(|| {
        let info = Arc::new(owned());
        let other = {
            let info = Arc::clone(&info);
            thread::spawn(move || info.get_type(PageType::Writable).is_some())
        };
        let mine = info.get_type(PageType::ReadOnly).is_some();
        assert!(mine ^ other.join().unwrap(), "one of them was first");
    });
}
