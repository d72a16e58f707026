//! The event by which a backend notifies a frontend.

use alloc::sync::Arc;

use backends::Notifier;
use pvrt::event::Port;

/// Raises a frontend's event channel.
pub struct Bell(pub Arc<Port>);

impl Notifier for Bell {
    fn notify(&mut self) {
        self.0.notify();
    }
}
