//! The console daemon's engine against a hostile guest.

use backends::Notifier;
use backends::console::ConsoleBack;
use ring_abi::io::console::{IN, OUT};

use crate::input::Input;
use crate::page::HostilePage;

struct Ignored;

impl Notifier for Ignored {
    fn notify(&mut self) {}
}

/// Output and input in any order: a turn is bounded, and so is what is kept.
pub(crate) fn run(data: &[u8]) {
    const KEPT: usize = 700;
    const MOST: usize = 8192;
    let input = Input::new(data);
    let page = HostilePage::new(4096, &input);
    for offset in [IN.cons, IN.prod, OUT.cons, OUT.prod] {
        page.set(offset, &input.u32().to_le_bytes());
    }
    let mut console = ConsoleBack::new(page, Ignored, KEPT).expect("a page");
    while !input.is_empty() {
        if input.u8() & 1 == 0 {
            let (mut shown, mut left) = (0, MOST);
            let _ = console.poll(left, |bytes| {
                shown += bytes.len();
                left = left.saturating_sub(bytes.len());
                left
            });
            assert!(shown <= MOST, "a turn without end");
        } else {
            let typed = input.take(input.below(256));
            assert!(console.input(&typed).unwrap_or(0) <= typed.len());
        }
        let kept = console.scrollback();
        assert!(kept.end() - kept.start() <= KEPT as u64);
        let mut buffer = [0; 100];
        let (count, _) = kept.read(input.u64() % (kept.end() + 2), &mut buffer);
        assert!(count <= buffer.len());
    }
}
