//! Requests as they come on the wire: this module takes requests apart and puts replies together.

use alloc::format;
use alloc::vec::Vec;

use ring_abi::io::xs_wire::{self as wire, XENSTORE_PAYLOAD_MAX, XsdSockmsg};

use super::connection::ConnId;
use super::error::XsError;
use super::path::Path;
use super::perms::{Perm, Perms, parse_domid, parse_u64};
use super::server::Server;
use super::stream::Message;

/// The reply to a request whose reply has no content.
pub(super) const OK: &[u8] = b"OK\0";

impl Server {
    /// Handles one request: queues the request's reply, then the watch events that the request caused.
    pub fn handle(&mut self, conn: ConnId, request: &Message) {
        let XsdSockmsg { r#type: kind, tx_id, .. } = request.header;
        self.log_request(conn, request);
        let result = match kind {
            wire::XS_TRANSACTION_END => self.end(conn, &request.header, &request.payload).transpose(),
            _ => Some(self.dispatch(conn, kind, tx_id, &request.payload)),
        };
        // A long commit is answered when the commit is over.
        if let Some(result) = result {
            self.answer(conn, request.header, result);
        }
        self.flush_for(Some(conn));
    }

    /// Queues the reply to a request.
    pub(super) fn answer(&mut self, conn: ConnId, request: XsdSockmsg, result: Result<Vec<u8>, XsError>) {
        let XsdSockmsg { r#type: kind, req_id, tx_id, .. } = request;
        let result = result.and_then(|payload| {
            if payload.len() > XENSTORE_PAYLOAD_MAX { Err(XsError::TooBig) } else { Ok(payload) }
        });
        let (kind, payload) = match result {
            Ok(payload) => (kind, payload),
            Err(error) => (wire::XS_ERROR, nul_terminated(error.name())),
        };
        let header = XsdSockmsg { r#type: kind, req_id, tx_id, len: payload.len() as u32 };
        self.reply(conn, Message { header, payload });
    }

    /// `XS_TRANSACTION_END`; `None`: the reply comes later.
    fn end(
        &mut self,
        conn: ConnId,
        request: &XsdSockmsg,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, XsError> {
        let commit = match only(payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(XsError::Inval),
        };
        let ended = self.transaction_end_for(conn, request.tx_id, commit, Some(*request))?;
        ended.map(|result| result.map(|()| Vec::from(OK))).transpose()
    }

    fn dispatch(&mut self, conn: ConnId, kind: u32, tx_id: u32, payload: &[u8]) -> Result<Vec<u8>, XsError> {
        let domid = self.serving(conn)?.domid;
        let ok = |()| Vec::from(OK);
        match kind {
            wire::XS_CONTROL => self.control(conn, payload),
            wire::XS_DIRECTORY => self.directory(conn, tx_id, &Path::resolve(only(payload)?, domid)?),
            wire::XS_DIRECTORY_PART => {
                let [path, offset] = strings(payload)?;
                self.directory_part(conn, tx_id, &Path::resolve(path, domid)?, offset)
            }
            wire::XS_READ => {
                let path = Path::resolve(only(payload)?, domid)?;
                self.view(conn, tx_id, |view| view.read(&path)).map(|value| Vec::from(&*value))
            }
            wire::XS_WRITE => {
                let (path, value) = first(payload)?;
                let path = Path::resolve(path, domid)?;
                self.view(conn, tx_id, |view| view.write(&path, value)).map(ok)
            }
            wire::XS_MKDIR => {
                let path = Path::resolve(only(payload)?, domid)?;
                self.view(conn, tx_id, |view| view.mkdir(&path)).map(ok)
            }
            wire::XS_RM => {
                let path = Path::resolve(only(payload)?, domid)?;
                self.view(conn, tx_id, |view| view.rm(&path)).map(ok)
            }
            wire::XS_GET_PERMS => self.get_perms(conn, tx_id, &Path::resolve_watch(only(payload)?, domid)?),
            wire::XS_SET_PERMS => {
                let (path, rest) = first(payload)?;
                self.set_perms(conn, tx_id, &Path::resolve_watch(path, domid)?, rest).map(ok)
            }
            wire::XS_WATCH => {
                let [path, token] = strings(payload)?;
                self.watch(conn, path, token).map(ok)
            }
            wire::XS_UNWATCH => {
                let [path, token] = strings(payload)?;
                self.unwatch(conn, path, token).map(ok)
            }
            wire::XS_RESET_WATCHES => {
                self.reset(conn);
                Ok(Vec::from(OK))
            }
            wire::XS_TRANSACTION_START => {
                if tx_id != 0 {
                    return Err(XsError::Busy);
                }
                self.transaction_start(conn).map(|id| nul_terminated(&format!("{id}")))
            }
            wire::XS_INTRODUCE => {
                let [domid, mfn, port] = strings(payload)?;
                let port = u32::try_from(parse_u64(port)?).map_err(|_| XsError::Inval)?;
                self.introduce(conn, parse_domid(domid)?, parse_u64(mfn)?, port).map(ok)
            }
            wire::XS_RELEASE => self.release(conn, parse_domid(only(payload)?)?).map(ok),
            wire::XS_RESUME => self.resume(conn, parse_domid(only(payload)?)?).map(ok),
            wire::XS_SET_TARGET => {
                let [domid, target] = strings(payload)?;
                self.set_target(conn, parse_domid(domid)?, parse_domid(target)?).map(ok)
            }
            wire::XS_GET_DOMAIN_PATH => {
                let home = Path::home(parse_domid(only(payload)?)?);
                Ok(nul_terminated(&format!("{home}")))
            }
            wire::XS_IS_DOMAIN_INTRODUCED => {
                let known = self.is_introduced(parse_domid(only(payload)?)?);
                Ok(nul_terminated(if known { "T" } else { "F" }))
            }
            _ => Err(XsError::NoSys),
        }
    }

    /// `XS_DIRECTORY`.
    fn directory(&mut self, conn: ConnId, tx_id: u32, path: &Path) -> Result<Vec<u8>, XsError> {
        let mut list = Vec::new();
        self.view(conn, tx_id, |view| {
            view.list(path, |name| {
                list.extend_from_slice(name);
                list.push(0);
                // A longer list is not answered: `handle` says E2BIG.
                list.len() <= XENSTORE_PAYLOAD_MAX
            })
        })?;
        Ok(list)
    }

    /// `XS_DIRECTORY_PART`.
    fn directory_part(
        &mut self,
        conn: ConnId,
        tx_id: u32,
        path: &Path,
        offset: &[u8],
    ) -> Result<Vec<u8>, XsError> {
        let offset = usize::try_from(parse_u64(offset)?).map_err(|_| XsError::Inval)?;
        let (mut rest, mut skip) = (Vec::new(), offset);
        let generation = self.view(conn, tx_id, |view| {
            view.list(path, |name| {
                if skip > name.len() {
                    skip -= name.len() + 1;
                } else {
                    rest.extend_from_slice(&name[skip..]);
                    rest.push(0);
                    skip = 0;
                }
                rest.len() <= XENSTORE_PAYLOAD_MAX
            })
        })?;
        Ok(directory_part(&rest, generation))
    }

    /// `XS_GET_PERMS`, of a special watch too.
    fn get_perms(&mut self, conn: ConnId, tx_id: u32, path: &Path) -> Result<Vec<u8>, XsError> {
        let perms = if path.is_special() {
            self.special_perms(conn, path)?.clone()
        } else {
            self.view(conn, tx_id, |view| view.perms(path))?
        };
        Ok(perms.entries().iter().flat_map(|perm| nul_terminated(&perm.text())).collect())
    }

    /// `XS_SET_PERMS`, of a special watch too.
    fn set_perms(&mut self, conn: ConnId, tx_id: u32, path: &Path, rest: &[u8]) -> Result<(), XsError> {
        let entries: Vec<Perm> = all_strings(rest)?.into_iter().map(Perm::parse).collect::<Result<_, _>>()?;
        let perms = Perms::new(&entries)?;
        if path.is_special() {
            *self.special_perms(conn, path)? = perms;
            return Ok(());
        }
        self.view(conn, tx_id, |view| view.set_perms(path, perms))
    }
}

pub(super) fn nul_terminated(text: &str) -> Vec<u8> {
    let mut bytes = Vec::from(text.as_bytes());
    bytes.push(0);
    bytes
}

/// As many whole names of `rest` as fit; after the last of all, an empty string.
fn directory_part(rest: &[u8], generation: u64) -> Vec<u8> {
    let mut reply = nul_terminated(&format!("{generation}"));
    let room = XENSTORE_PAYLOAD_MAX - reply.len() - 1;
    let part = match rest.len() {
        len if len <= room => rest,
        _ => {
            let end = rest[..room].iter().rposition(|&b| b == 0).map_or(0, |nul| nul + 1);
            &rest[..end]
        }
    };
    reply.extend_from_slice(part);
    if part.len() == rest.len() {
        reply.push(0);
    }
    reply
}

/// The one string of a payload that is exactly one string with its NUL.
fn only(payload: &[u8]) -> Result<&[u8], XsError> {
    match first(payload)? {
        (text, []) => Ok(text),
        _ => Err(XsError::Inval),
    }
}

/// The first string, and the bytes behind the string's NUL.
fn first(payload: &[u8]) -> Result<(&[u8], &[u8]), XsError> {
    let nul = payload.iter().position(|&b| b == 0).ok_or(XsError::Inval)?;
    Ok((&payload[..nul], &payload[nul + 1..]))
}

/// The first `N` strings. What follows these strings is reserved, and this function does not look at it.
fn strings<const N: usize>(mut payload: &[u8]) -> Result<[&[u8]; N], XsError> {
    let mut found = [&[][..]; N];
    for slot in &mut found {
        (*slot, payload) = first(payload)?;
    }
    Ok(found)
}

/// All strings of a payload; the last string has its NUL, too.
pub(super) fn all_strings(mut payload: &[u8]) -> Result<Vec<&[u8]>, XsError> {
    let mut found = Vec::new();
    while !payload.is_empty() {
        let (text, rest) = first(payload)?;
        found.push(text);
        payload = rest;
    }
    Ok(found)
}
