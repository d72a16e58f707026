//! A VLAN tag is put into a head, and taken out.

use super::{ETHERNET_BYTES, TAG_BYTES, ethertype};

/// The number of the VLAN in a tag's control information. 0: the tag has a priority alone.
#[must_use]
pub const fn vlan(tci: u16) -> u16 {
    tci & 0xfff
}

/// Puts a tag into the head of `head_len` bytes in `buffer`, and gives the new length. `None`: there is no Ethernet header,
/// or the buffer has no room for four more bytes.
pub fn push(buffer: &mut [u8], head_len: usize, tci: u16) -> Option<usize> {
    let addresses = ETHERNET_BYTES - 2;
    if head_len < ETHERNET_BYTES || head_len > buffer.len().checked_sub(TAG_BYTES)? {
        return None;
    }
    buffer.copy_within(addresses..head_len, addresses + TAG_BYTES);
    let [high, low] = tci.to_be_bytes();
    let [first, second] = ethertype::VLAN.to_be_bytes();
    buffer[addresses..addresses + TAG_BYTES].copy_from_slice(&[first, second, high, low]);
    Some(head_len + TAG_BYTES)
}

/// Takes the tag out of the head of `head_len` bytes in `buffer`, and gives the new length. `None`: there is no tag.
pub fn pop(buffer: &mut [u8], head_len: usize) -> Option<usize> {
    let addresses = ETHERNET_BYTES - 2;
    let head = buffer.get_mut(..head_len)?;
    if head_len < ETHERNET_BYTES + TAG_BYTES
        || head[addresses..ETHERNET_BYTES] != ethertype::VLAN.to_be_bytes()
    {
        return None;
    }
    head.copy_within(addresses + TAG_BYTES.., addresses);
    Some(head_len - TAG_BYTES)
}
