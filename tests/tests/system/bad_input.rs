//! What a person may get wrong: a clear message, exit status 1, nothing left behind.

use anyhow::Result;
use tests::{Machine, Scratch};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![bad_input:
        a_syntax_error_names_file_and_line,
        a_missing_kernel_is_named,
        a_truncated_kernel_is_named,
        a_corrupt_compressed_kernel_is_named,
        kernels_that_unpack_without_end_are_refused_beside_a_neighbour,
        memory_that_is_not_there,
        a_disk_that_does_not_exist,
        a_name_already_taken,
        an_unknown_command_fails,
    ])
}

/// Boots with `/boot/x.cfg` of this text and `/boot/k` of these bytes; creating the domain must fail, and the
/// console's end must say `message`.
fn refused(name: &str, configuration: &str, kernel: &[u8], message: &str) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let file = scratch.file("x.cfg", configuration.as_bytes())?;
    let kernel = scratch.file("k", kernel)?;
    Machine::new(name)
        .module(&file, "x.cfg")
        .module(&kernel, "k")
        .line("xl create /boot/x.cfg")
        .run()?
        .line_failed()?
        .says_at_the_end(4, message)?;
    Ok(())
}

fn a_syntax_error_names_file_and_line() -> Result<()> {
    refused("bad-syntax", "name = \"x\"\nmemory = = 8\n", b"", "x.cfg:2")
}

fn a_missing_kernel_is_named() -> Result<()> {
    refused("bad-missing", "name=\"x\"\nkernel=\"/boot/absent\"\nmemory=8\n", b"", "/boot/absent")
}

fn a_truncated_kernel_is_named() -> Result<()> {
    let image = std::fs::read(xtask::images::find("hello")?.bootable())?;
    let half = &image[..image.len() / 2];
    refused("bad-truncated", "name=\"x\"\nkernel=\"/boot/k\"\nmemory=8\n", half, "/boot/k")
}

fn a_corrupt_compressed_kernel_is_named() -> Result<()> {
    // A gzip header, and what is no gzip stream.
    let not_gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0xff; 1000], &[0; 31_758]].concat();
    refused("bad-compressed", "name=\"x\"\nkernel=\"/boot/k\"\nmemory=8\n", &bz_image(&not_gzip), "/boot/k")
}

/// The least of a bzImage: a sound setup header, and this payload.
fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 1024];
    file[0x1f1] = 1; // one setup sector: the kernel begins at 1024
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&0u32.to_le_bytes()); // payload offset
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// Small files that would unpack into gigabytes, or take all of dom0's memory: each is refused within seconds, and a
/// neighbour that reads from xenstore all the while comes to its end.
fn kernels_that_unpack_without_end_are_refused_beside_a_neighbour() -> Result<()> {
    let scratch = Scratch::new("bad-bombs")?;
    let zstd = [
        &[0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3][..],
        // Blocks of one byte, 128 KiB long.
        &[&(1u32 << 1 | (128 << 10) << 3).to_le_bytes()[..3], &[7]].concat().repeat(800),
    ];
    // A byte, and a match that repeats it up to the end of the block's 8 MiB.
    let block = [&[0x1f, b'x', 1, 0][..], &[255; ((8 << 20) - 100) / 255], &[0, 0]].concat();
    let block = [&(block.len() as u32).to_le_bytes()[..], &block].concat();
    let lz4 = [&[2, 0x21, 0x4c, 0x18][..], &block.repeat(3)].concat();
    // Empty stored blocks.
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0, 0, 0, 0xff, 0xff].repeat(400_000)].concat();
    let mut machine = Machine::new("bad-bombs");
    for (name, bytes) in [("zstd", zstd.concat()), ("lz4", lz4), ("gzip", gzip)] {
        machine = machine.module(&scratch.file(name, &bz_image(&bytes))?, name);
    }
    let mut machine = machine.start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create /boot/bench.cfg name=\"server\" extra=\"echo=2\"")?;
    machine.expect("dom0# ", 20)?;
    machine
        .type_line("xl create /boot/bench.cfg vcpus=2 extra=\"partner=1 only=xenstore_read ops=20000\"")?;
    machine.expect("dom0# ", 20)?;
    for (name, message) in [
        // What comes out first is no ELF header: it is not unpacked any further.
        ("zstd", "neither an ELF file nor a bzImage"),
        ("lz4", "neither an ELF file nor a bzImage"),
        ("gzip", "the gzip stream ends too early"),
    ] {
        machine.type_line(&format!("xl create /boot/hello.cfg kernel=\"/boot/{name}\""))?;
        machine.expect(&format!("kernel /boot/{name}: {message}"), 15)?;
        machine.expect("dom0# ", 5)?;
    }
    machine.expect("bench xenstore_read", 120)?;
    machine.type_line("xl destroy server")?;
    machine.type_line("poweroff")?;
    machine.finish();
    Ok(())
}

fn memory_that_is_not_there() -> Result<()> {
    refused("bad-memory", "name=\"x\"\nkernel=\"/boot/hello\"\nmemory=65536\n", b"", "memory")
}

fn a_disk_that_does_not_exist() -> Result<()> {
    let text = "name=\"x\"\nkernel=\"/boot/hello\"\nmemory=8\ndisk=['phy:/dev/vdq,xvda,w']\n";
    refused("bad-disk", text, b"", "/dev/vdq")
}

fn a_name_already_taken() -> Result<()> {
    let machine = Machine::new("bad-name").line("xl create -p /boot/hello.cfg name=\"twin\"");
    machine
        .line("xl create /boot/hello.cfg name=\"twin\"")
        .run()?
        .line_failed()?
        .says_at_the_end(4, "twin")?;
    Ok(())
}

fn an_unknown_command_fails() -> Result<()> {
    let run = Machine::new("bad-command").line("frobnicate").line("poweroff").run()?;
    run.line_failed()?.says_at_the_end(4, "frobnicate")?;
    Ok(())
}
