//! Xenstore, by the kernel's device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::Mutex;

use ring_abi::io::xs_wire::{XS_DIRECTORY, XS_ERROR, XS_READ, XS_WRITE, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

/// A connection; one request at a time.
pub(crate) struct Store(Mutex<File>);

impl Store {
    /// Opens the device.
    pub(crate) fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/xen/xenbus")?;
        Ok(Self(Mutex::new(file)))
    }

    /// The answer to a request, unless it is an error.
    fn ask(&self, kind: u32, parts: &[&[u8]]) -> io::Result<Option<Vec<u8>>> {
        let payload = parts.concat();
        let header = XsdSockmsg { r#type: kind, req_id: 0, tx_id: 0, len: payload.len() as u32 };
        let mut file = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.write_all(&[header.as_bytes(), &payload].concat())?;
        let mut bytes = [0; size_of::<XsdSockmsg>()];
        file.read_exact(&mut bytes)?;
        let header = XsdSockmsg::read_from_bytes(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut payload = vec![0; header.len as usize];
        file.read_exact(&mut payload)?;
        Ok((header.r#type != XS_ERROR).then_some(payload))
    }

    /// A node's value.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let value = self.ask(XS_READ, &[path.as_bytes(), &[0]]).ok()??;
        String::from_utf8(value).ok()
    }

    /// Sets a node. A refusal is ignored, since there is nobody to report it to.
    pub(crate) fn write(&self, path: &str, value: &str) {
        let _ = self.ask(XS_WRITE, &[path.as_bytes(), &[0], value.as_bytes()]);
    }

    /// The names of a node's children.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let list = self.ask(XS_DIRECTORY, &[path.as_bytes(), &[0]]).ok().flatten().unwrap_or_default();
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }
}
