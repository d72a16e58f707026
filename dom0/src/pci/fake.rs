//! Configuration space in memory, for tests.

use alloc::collections::BTreeMap;
use core::cell::RefCell;

use super::{Address, BAR0, ConfigSpace};

#[derive(Default)]
struct FakeFunction {
    words: BTreeMap<u8, u32>,
    masks: BTreeMap<u8, u32>,
}

/// Functions that a test added. A function that no test added reads as all ones.
#[derive(Default)]
pub(crate) struct FakeConfig {
    functions: RefCell<BTreeMap<Address, FakeFunction>>,
}

impl FakeConfig {
    pub(crate) fn add(&self, address: Address, vendor: u16, device: u16, class: u32) {
        self.functions.borrow_mut().insert(address, FakeFunction::default());
        self.write32(address, 0, u32::from(vendor) | u32::from(device) << 16);
        self.write32(address, 8, class << 8);
    }

    pub(crate) fn set8(&self, address: Address, offset: u8, value: u8) {
        let shift = u32::from(offset & 3) * 8;
        let old = self.read32(address, offset);
        self.write32(address, offset, old & !(0xff << shift) | u32::from(value) << shift);
    }

    pub(crate) fn set16(&self, address: Address, offset: u8, value: u16) {
        self.write16(address, offset, value);
    }

    /// Gives a function a BAR with `value`, which reads as `mask` after ones were written.
    pub(crate) fn bar(&self, address: Address, index: u8, value: u32, mask: u32) {
        let offset = BAR0 + 4 * index;
        self.write32(address, offset, value);
        let wide = value & 7 == 4;
        let mut functions = self.functions.borrow_mut();
        let function = functions.get_mut(&address).unwrap();
        function.masks.insert(offset, mask);
        if wide {
            function.words.insert(offset + 4, 1);
            function.masks.insert(offset + 4, u32::MAX);
        }
    }
}

impl ConfigSpace for FakeConfig {
    fn read32(&self, address: Address, offset: u8) -> u32 {
        match self.functions.borrow().get(&address) {
            Some(function) => function.words.get(&(offset & !3)).copied().unwrap_or(0),
            None => u32::MAX,
        }
    }

    fn write32(&self, address: Address, offset: u8, value: u32) {
        if let Some(function) = self.functions.borrow_mut().get_mut(&address) {
            let offset = offset & !3;
            let is_bar = (BAR0..BAR0 + 24).contains(&offset);
            let value = match function.masks.get(&offset) {
                Some(&mask) if value == u32::MAX => mask,
                None if is_bar && value == u32::MAX => 0,
                _ => value,
            };
            function.words.insert(offset, value);
        }
    }

    fn write16(&self, address: Address, offset: u8, value: u16) {
        let shift = u32::from(offset & 2) * 8;
        let old = self.read32(address, offset);
        self.write32(address, offset, old & !(0xffff << shift) | u32::from(value) << shift);
    }
}
