//! Domains: introduced, shut down, gone.

use ring_abi::types::DOMID_FIRST_RESERVED;

use super::connection::{ConnId, Connection};
use super::deferred::Deferred;
use super::error::XsError;
use super::path::Path;
use super::perms::Perms;
use super::server::{Domain, Effect, Server};
use super::watch::{INTRODUCE_DOMAIN, RELEASE_DOMAIN, Told};

impl Server {
    /// `XS_INTRODUCE`, for dom0 alone. A second call for the same domain starts the domain's connection afresh.
    ///
    /// # Errors
    /// - `EACCES`: the caller is not dom0.
    /// - `EINVAL`: `domid` is dom0's or no domain's, or `port` is 0.
    pub(super) fn introduce(&mut self, conn: ConnId, domid: u16, mfn: u64, port: u32) -> Result<(), XsError> {
        self.dom0_only(conn)?;
        if domid == 0 || domid >= DOMID_FIRST_RESERVED || port == 0 {
            return Err(XsError::Inval);
        }
        let known = self.domains.get(&domid).map(|domain| domain.conn);
        let conn = match known {
            Some(conn) => {
                self.reconnect(conn);
                conn
            }
            None => {
                let conn = self.open(domid, false);
                self.domains.insert(domid, Domain { conn, target: None, shut_down: false, failures: 0 });
                self.deferred.push_back(Deferred::Special(INTRODUCE_DOMAIN, Told::default()));
                conn
            }
        };
        self.effect(Effect::Introduced { conn, domid, mfn, port, again: known.is_some() });
        Ok(())
    }

    /// Starts a connection afresh: no watches, no transactions, nothing half received or half sent, no failure.
    pub fn reconnect(&mut self, conn: ConnId) {
        self.reset(conn);
        if let Some(connection) = self.connections.get_mut(&conn) {
            let mut old =
                core::mem::replace(connection, Connection::new(connection.domid, connection.internal));
            connection.left = core::mem::take(&mut old.left);
            self.woken.extend(old.waker);
        }
    }

    /// `XS_RELEASE`, for dom0 alone: the server does what it does when a domain was destroyed.
    ///
    /// # Errors
    /// - `EACCES`: the caller is not dom0.
    /// - `ENOENT`: the domain is not introduced.
    pub(super) fn release(&mut self, conn: ConnId, domid: u16) -> Result<(), XsError> {
        self.dom0_only(conn)?;
        if !self.domains.contains_key(&domid) {
            return Err(XsError::NoEnt);
        }
        self.remove_domain(domid);
        Ok(())
    }

    /// `XS_RESUME`, for dom0 alone: watches will fire again for the domain's next shutdown.
    ///
    /// # Errors
    /// - `EACCES`: the caller is not dom0.
    /// - `ENOENT`: the domain is not introduced.
    pub(super) fn resume(&mut self, conn: ConnId, domid: u16) -> Result<(), XsError> {
        self.dom0_only(conn)?;
        self.domains.get_mut(&domid).ok_or(XsError::NoEnt)?.shut_down = false;
        Ok(())
    }

    /// `XS_SET_TARGET`, for dom0 alone: `domid` gets the rights of `target`, too.
    ///
    /// # Errors
    /// - `EACCES`: the caller is not dom0.
    /// - `ENOENT`: one of the two domains is not introduced.
    pub(super) fn set_target(&mut self, conn: ConnId, domid: u16, target: u16) -> Result<(), XsError> {
        self.dom0_only(conn)?;
        if !self.domains.contains_key(&target) {
            return Err(XsError::NoEnt);
        }
        self.domains.get_mut(&domid).ok_or(XsError::NoEnt)?.target = Some(target);
        Ok(())
    }

    /// Is the domain introduced? dom0 always is.
    pub fn is_introduced(&self, domid: u16) -> bool {
        domid == 0 || self.domains.contains_key(&domid)
    }

    /// The permissions of a special watch. Only dom0 may read or set these permissions.
    ///
    /// # Errors
    /// - `EACCES`: the caller is not dom0.
    /// - `ENOENT`: there is no special watch of that name.
    pub(super) fn special_perms(&mut self, conn: ConnId, name: &Path) -> Result<&mut Perms, XsError> {
        self.dom0_only(conn)?;
        self.special_slot(name).ok_or(XsError::NoEnt)
    }

    pub(super) fn special_slot(&mut self, name: &Path) -> Option<&mut Perms> {
        let names = [INTRODUCE_DOMAIN, RELEASE_DOMAIN];
        let at = names.iter().position(|known| known.as_bytes() == name.key())?;
        self.special_perms.get_mut(at)
    }

    /// Notes that the domain shut down or crashed, as the hypervisor says. Watches on `@releaseDomain` fire once for
    /// the shutdown.
    pub fn domain_shut_down(&mut self, domid: u16) {
        if let Some(domain) = self.domains.get_mut(&domid)
            && !domain.shut_down
        {
            domain.shut_down = true;
            self.deferred.push_back(Deferred::Special(RELEASE_DOMAIN, Told::default()));
        }
        self.flush();
    }

    /// Notes that the domain is no more. The domain's connection goes at once. The nodes that the domain owns, with all
    /// below them, and every permission that names the domain go in steps: see [`Server::settle_some`].
    pub fn domain_destroyed(&mut self, domid: u16) {
        if domid != 0 {
            self.remove_domain(domid);
        }
        self.flush();
    }

    fn remove_domain(&mut self, domid: u16) {
        if let Some(domain) = self.domains.remove(&domid) {
            self.disconnect(domain.conn);
            self.effect(Effect::Released { conn: domain.conn, domid });
        }
        for domain in self.domains.values_mut() {
            if domain.target == Some(domid) {
                domain.target = None;
            }
        }
        self.deferred.push_back(Deferred::Forget(domid, None));
        for perms in &mut self.special_perms {
            *perms = perms.without(domid).unwrap_or_else(|| perms.clone());
        }
        self.deferred.push_back(Deferred::Special(RELEASE_DOMAIN, Told::default()));
    }
}
