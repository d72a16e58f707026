//! Permissions of nodes.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::error::XsError;

/// What an entry grants: the letter before the domain's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `n`: nothing.
    None,
    /// `r`: to read.
    Read,
    /// `w`: to write.
    Write,
    /// `b`: both.
    Both,
}

impl Access {
    fn reads(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    fn writes(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }
}

/// One entry of a node's permissions, written `n0`, `r7`, `w7`, `b7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// The domain that the entry is about; in the first entry, the owner.
    pub domid: u16,
    /// What the entry grants. The first entry grants this to every domain that no later entry names.
    pub access: Access,
}

impl Perm {
    /// Reads `<letter><domid>`.
    ///
    /// # Errors
    /// `EINVAL`: the letter is another, or no decimal number of 16 bits follows the letter.
    pub fn parse(text: &[u8]) -> Result<Perm, XsError> {
        let (letter, digits) = text.split_first().ok_or(XsError::Inval)?;
        let access = match letter {
            b'n' => Access::None,
            b'r' => Access::Read,
            b'w' => Access::Write,
            b'b' => Access::Both,
            _ => return Err(XsError::Inval),
        };
        Ok(Perm { domid: parse_domid(digits)?, access })
    }

    /// The entry as a client writes the entry.
    pub fn text(&self) -> String {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        format!("{letter}{}", self.domid)
    }
}

/// Reads a domain id in decimal.
///
/// # Errors
/// `EINVAL`: `digits` is empty, has other characters than digits, or is over 65535.
pub(crate) fn parse_domid(digits: &[u8]) -> Result<u16, XsError> {
    let value = parse_u64(digits)?;
    u16::try_from(value).map_err(|_| XsError::Inval)
}

/// Reads a number in decimal.
///
/// # Errors
/// `EINVAL`: `digits` is empty, has other characters than digits, or does not fit 64 bits.
pub(crate) fn parse_u64(digits: &[u8]) -> Result<u64, XsError> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(XsError::Inval);
    }
    let text = core::str::from_utf8(digits).map_err(|_| XsError::Inval)?;
    text.parse().map_err(|_| XsError::Inval)
}

/// The domain that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    /// The domain.
    pub(crate) domid: u16,
    /// The domain that the asking domain serves; the asking domain has the rights of this domain, too
    /// (`XS_SET_TARGET`).
    pub(crate) target: Option<u16>,
}

impl Actor {
    /// Is every permission check passed, and no quota kept?
    pub(crate) fn privileged(self) -> bool {
        self.domid == 0
    }

    fn is(self, domid: u16) -> bool {
        self.domid == domid || self.target == Some(domid)
    }
}

/// What an actor wants to do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    Write,
    Own,
}

/// A node's permissions: the owner with everyone's default, then exceptions. Never empty; cloning shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Perms(Arc<[Perm]>);

impl Perms {
    /// Checks a list of entries.
    ///
    /// # Errors
    /// `EINVAL`: the list is empty.
    pub fn new(entries: &[Perm]) -> Result<Perms, XsError> {
        if entries.is_empty() { Err(XsError::Inval) } else { Ok(Perms(Arc::from(entries))) }
    }

    /// Permissions of a node that `domid` owns, with `others` for everyone else.
    pub fn owned_by(domid: u16, others: Access) -> Perms {
        Perms(Arc::from([Perm { domid, access: others }]))
    }

    /// Owned by `owner`, readable by `reader`, closed to everyone else: `n<owner>,r<reader>`.
    pub fn shared_with(owner: u16, reader: u16) -> Perms {
        let entries =
            [Perm { domid: owner, access: Access::None }, Perm { domid: reader, access: Access::Read }];
        Perms(Arc::from(entries))
    }

    /// The owner.
    pub fn owner(&self) -> u16 {
        #[cfg(test)]
        super::looks::note();
        self.0[0].domid
    }

    /// The entries, the owner's first.
    pub fn entries(&self) -> &[Perm] {
        #[cfg(test)]
        super::looks::note();
        &self.0
    }

    /// The same permissions with another owner.
    pub(crate) fn with_owner(&self, domid: u16) -> Perms {
        if self.owner() == domid {
            return self.clone();
        }
        let mut entries = Vec::from(&self.0[..]);
        entries[0].domid = domid;
        Perms(Arc::from(entries))
    }

    /// The same permissions without the exceptions for `domid`; `None` if there are no such exceptions.
    pub(crate) fn without(&self, domid: u16) -> Option<Perms> {
        if !self.0[1..].iter().any(|perm| perm.domid == domid) {
            return None;
        }
        let kept = self.0.iter().enumerate().filter(|(at, perm)| *at == 0 || perm.domid != domid);
        Some(Perms(kept.map(|(_, perm)| *perm).collect()))
    }

    /// Whether `actor` may have `want`. The first entry that names the actor decides.
    pub(crate) fn allow(&self, actor: Actor, want: Want) -> bool {
        if actor.privileged() || actor.is(self.owner()) {
            return true;
        }
        let named = self.0[1..].iter().find(|perm| actor.is(perm.domid));
        let access = named.unwrap_or(&self.0[0]).access;
        match want {
            Want::Read => access.reads(),
            Want::Write => access.writes(),
            Want::Own => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perms(text: &str) -> Perms {
        let entries: Vec<Perm> = text.split(',').map(|p| Perm::parse(p.as_bytes()).unwrap()).collect();
        Perms::new(&entries).unwrap()
    }

    fn actor(domid: u16) -> Actor {
        Actor { domid, target: None }
    }

    #[test]
    fn reads_and_prints_entries() {
        for text in ["n0", "r1", "w42", "b65535"] {
            assert_eq!(Perm::parse(text.as_bytes()).unwrap().text(), text);
        }
        for bad in ["", "n", "x1", "n65536", "n-1", "n 1", "1", "n1x", "n99999999999999999999999"] {
            assert!(Perm::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Perms::new(&[]).is_err());
    }

    #[test]
    fn first_entry_is_owner_and_default() {
        let perms = perms("r3,w5,n6,b7,r5");
        for (domid, read, write, own) in [
            (0, true, true, true),
            (3, true, true, true),
            (4, true, false, false),
            (5, false, true, false),
            (6, false, false, false),
            (7, true, true, false),
        ] {
            assert_eq!(perms.allow(actor(domid), Want::Read), read, "{domid}");
            assert_eq!(perms.allow(actor(domid), Want::Write), write, "{domid}");
            assert_eq!(perms.allow(actor(domid), Want::Own), own, "{domid}");
        }
    }

    #[test]
    fn a_target_lends_its_rights() {
        let helper = Actor { domid: 9, target: Some(3) };
        assert!(perms("n3").allow(helper, Want::Own));
        assert!(perms("n1,b3").allow(helper, Want::Write));
        assert!(!perms("n1,r3").allow(helper, Want::Write));
        assert!(!perms("n1").allow(helper, Want::Read));
    }

    #[test]
    fn drops_a_dead_domains_entries() {
        assert_eq!(perms("n1,r2,b3").without(2), Some(perms("n1,b3")));
        assert_eq!(perms("n1,r2").without(1), None);
        assert_eq!(perms("n1,r2").with_owner(5), perms("n5,r2"));
    }
}
