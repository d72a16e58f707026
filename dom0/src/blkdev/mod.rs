//! The control domain's block devices, by the names that configurations use.
//!
//! The names are those that Linux gives: virtio's disks are `/dev/vda`, `/dev/vdb`, ... in the order of the PCI addresses,
//! NVMe's `/dev/nvme0n1`, `/dev/nvme1n1`, ..., SATA's `/dev/sda`, `/dev/sdb`, ...; and a disk that has a serial number has
//! a name below `/dev/disk/by-id` too: `virtio-SERIAL`, `nvme-MODEL_SERIAL`, `ata-MODEL_SERIAL`.

mod io;
mod names;
mod probe;
mod quiet;
mod stream;

pub use io::{IoError, read, write};
pub use names::{disk_name, id_name};
pub use probe::probe;
pub use quiet::Quiet;
pub use stream::{DiskSink, DiskSource};

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::{BlockDevice, BlockOp, Client, Geometry, Segment, SubmitError};
use pvrt::Account;
use ring_abi::types::DomId;
use spin::Mutex;

/// A block device that tasks share.
pub type SharedDevice = Arc<dyn BlockDevice + Send + Sync>;

/// A disk and its names.
#[derive(Clone)]
pub struct Disk {
    /// The name below `/dev`.
    pub name: String,
    /// The name below `/dev/disk/by-id`, if the disk has a serial number.
    pub id: Option<String>,
    /// The disk.
    pub device: SharedDevice,
}

/// The users of all disks, each with what answers whether requests are under way.
type Users = Arc<Mutex<Vec<(User, Arc<Quiet>)>>>;

/// All disks. The locks guard the lists only and are held for a look-up.
#[derive(Default)]
pub struct Disks {
    list: Mutex<Vec<Disk>>,
    /// The list of which backend has which disk open, with an entry for each open disk.
    users: Users,
}

/// A block backend that has a disk open. The backend may have requests under way at the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The disk's name below `/dev`.
    pub disk: String,
    /// The domain that the backend serves.
    pub domain: DomId,
    /// The domain's device.
    pub device: u32,
    /// The domain may write.
    pub writable: bool,
}

/// A disk that is open. The backend drops this value when nothing is under way any more. (I26)
pub struct OpenDisk {
    user: User,
    users: Users,
}

impl Drop for OpenDisk {
    fn drop(&mut self) {
        let mut users = self.users.lock();
        if let Some(index) = users.iter().position(|(user, _)| *user == self.user) {
            users.swap_remove(index);
        }
    }
}

impl Disks {
    /// No disks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a disk.
    pub fn add(&self, disk: Disk) {
        self.list.lock().push(disk);
    }

    /// All disks, in order.
    pub fn list(&self) -> Vec<Disk> {
        self.list.lock().clone()
    }

    /// The disk that `path` names: `/dev/NAME`, plain `NAME`, or `/dev/disk/by-id/ID`.
    pub fn find(&self, path: &str) -> Option<Disk> {
        let name = path.strip_prefix("/dev/").unwrap_or(path);
        let by_id = name.strip_prefix("disk/by-id/");
        let list = self.list.lock();
        list.iter()
            .find(|disk| match by_id {
                Some(id) => disk.id.as_deref() == Some(id),
                None => name == disk.name,
            })
            .cloned()
    }

    /// Notes that a backend has a disk open, which answers by `quiet`. Whether a disk is in use follows from this note
    /// alone, and not from what has become of the domain: a dead domain's requests may still be under way.
    pub fn open(&self, user: User, quiet: Arc<Quiet>) -> OpenDisk {
        // The list belongs to the disks, so its memory is charged to dom0, whichever task makes the list grow.
        Account::own().charge(|| self.users.lock().push((user.clone(), quiet)));
        OpenDisk { user, users: self.users.clone() }
    }

    /// The users of all open disks.
    pub fn users(&self) -> Vec<User> {
        self.users.lock().iter().map(|(user, _)| user.clone()).collect()
    }

    /// The names under which the disks can be found, `/dev/...`, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for disk in self.list.lock().iter() {
            paths.push(format!("/dev/{}", disk.name));
            paths.extend(disk.id.as_ref().map(|id| format!("/dev/disk/by-id/{id}")));
        }
        paths
    }
}

/// A disk as one user may see the disk: read-only, whatever the disk can do.
pub struct ReadOnly(pub SharedDevice);

impl BlockDevice for ReadOnly {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, discard: None, ..self.0.geometry() }
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        match op {
            BlockOp::Read => self.0.submit(client, tag, op, sector, segments),
            _ => Err(SubmitError::Failed),
        }
    }

    fn kick(&self) {
        self.0.kick();
    }
}

/// A disk as one user may see the disk: without discards, so that the disk gives away no space that the user gave up.
pub struct NoDiscard(pub SharedDevice);

impl BlockDevice for NoDiscard {
    fn geometry(&self) -> Geometry {
        Geometry { discard: None, ..self.0.geometry() }
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        match op {
            BlockOp::Discard { .. } => Err(SubmitError::Failed),
            _ => self.0.submit(client, tag, op, sector, segments),
        }
    }

    fn kick(&self) {
        self.0.kick();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A device that never answers.
    pub(crate) struct Silent;

    impl BlockDevice for Silent {
        fn geometry(&self) -> Geometry {
            Geometry {
                sectors: 8,
                sector_size: 512,
                physical_sector_size: 512,
                read_only: false,
                flush: true,
                discard: None,
                seg_max: 1,
            }
        }
        fn submit(
            &self,
            _: &Arc<Client>,
            _: u32,
            _: BlockOp,
            _: u64,
            _: &[Segment],
        ) -> Result<(), SubmitError> {
            Ok(())
        }
        fn kick(&self) {}
    }

    #[test]
    fn look_up_by_every_name() {
        let disks = Disks::new();
        for (name, id) in [("vda", None), ("vdb", Some("virtio-root"))] {
            let device = Arc::new(Silent);
            disks.add(Disk { name: name.into(), id: id.map(Into::into), device });
        }
        let find = |path: &str| disks.find(path).map(|disk| disk.name);
        assert_eq!(find("/dev/vda").as_deref(), Some("vda"));
        assert_eq!(find("vdb").as_deref(), Some("vdb"));
        assert_eq!(find("/dev/disk/by-id/virtio-root").as_deref(), Some("vdb"));
        for missing in
            ["", "/dev/", "/dev/vdc", "/dev/vda1", "/dev/disk/by-id/root", "/dev/disk/by-id/virtio-"]
        {
            assert_eq!(find(missing), None, "{missing}");
        }
        assert_eq!(disks.paths(), ["/dev/vda", "/dev/vdb", "/dev/disk/by-id/virtio-root"]);
    }

    #[test]
    fn read_only_view_passes_reads_alone() {
        let view = ReadOnly(Arc::new(Silent));
        let client = Client::new(1);
        assert!(view.geometry().read_only);
        assert_eq!(view.submit(&client, 0, BlockOp::Read, 0, &[]), Ok(()));
        for op in [BlockOp::Write, BlockOp::Flush, BlockOp::Discard { sectors: 1 }] {
            assert_eq!(view.submit(&client, 0, op, 0, &[]), Err(SubmitError::Failed));
        }
    }

    #[test]
    fn a_view_without_discards_passes_all_else() {
        let view = NoDiscard(Arc::new(Silent));
        let client = Client::new(1);
        assert_eq!(view.geometry().discard, None);
        for op in [BlockOp::Read, BlockOp::Write, BlockOp::Flush] {
            assert_eq!(view.submit(&client, 0, op, 0, &[]), Ok(()));
        }
        let discard = BlockOp::Discard { sectors: 1 };
        assert_eq!(view.submit(&client, 0, discard, 0, &[]), Err(SubmitError::Failed));
    }
}
