//! Contexts in a stream name frames as the guest numbers them, as page tables do.

use ring_abi::guest_context::VcpuGuestContext;

/// Bit 0 of the user's cr3 in a stream: there is one, since frame 0 may be it.
const HAS_USER_TABLE: u64 = 1;
/// Entries of a page of a GDT.
const GDT_PAGE: u64 = 512;
const PAGE_SHIFT: u32 = 12;

/// Replaces each frame that the context of a vCPU names by what `number` gives for the frame and for what the frame is. Of vCPU 0, which
/// is `first`, rdx names start_info: its guest said so when it suspended.
fn convert<E>(
    context: &mut VcpuGuestContext,
    first: bool,
    mut number: impl FnMut(u64, &'static str) -> Result<u64, E>,
) -> Result<(), E> {
    if first {
        context.user_regs.rdx = number(context.user_regs.rdx, "start_info")?;
    }
    let used = (context.gdt_ents.div_ceil(GDT_PAGE) as usize).min(context.gdt_frames.len());
    for frame in &mut context.gdt_frames[..used] {
        *frame = number(*frame, "a page of the GDT")?;
    }
    context.ctrlreg[3] = number(context.ctrlreg[3] >> PAGE_SHIFT, "the kernel's page table")? << PAGE_SHIFT;
    if context.ctrlreg[1] != 0 {
        context.ctrlreg[1] = number(context.ctrlreg[1] >> PAGE_SHIFT, "the user's page table")? << PAGE_SHIFT;
    }
    Ok(())
}

/// Makes a context of machine frames one of the guest's frame numbers.
///
/// # Errors
/// `pfn`'s.
pub fn canonicalise<E>(
    context: &mut VcpuGuestContext,
    first: bool,
    pfn: impl FnMut(u64, &'static str) -> Result<u64, E>,
) -> Result<(), E> {
    let has_user_table = context.ctrlreg[1] != 0;
    convert(context, first, pfn)?;
    context.ctrlreg[1] |= if has_user_table { HAS_USER_TABLE } else { 0 };
    Ok(())
}

/// Makes a context of the guest's frame numbers one of machine frames.
///
/// # Errors
/// `mfn`'s.
pub fn localise<E>(
    context: &mut VcpuGuestContext,
    first: bool,
    mfn: impl FnMut(u64, &'static str) -> Result<u64, E>,
) -> Result<(), E> {
    if context.ctrlreg[1] & HAS_USER_TABLE == 0 {
        context.ctrlreg[1] = 0;
    }
    convert(context, first, mfn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_the_same_context() {
        for user in [0, 5 << 12, 100 << 12] {
            let mut context = VcpuGuestContext { gdt_ents: 513, ..Default::default() };
            context.user_regs.rdx = 101;
            (context.gdt_frames[0], context.gdt_frames[1], context.gdt_frames[2]) = (102, 103, 104);
            (context.ctrlreg[3], context.ctrlreg[1]) =
                (105 << 12, if user == 0 { 0 } else { user + (100 << 12) });
            let before = context;
            canonicalise(&mut context, true, |mfn, what| mfn.checked_sub(100).ok_or(what)).unwrap();
            assert_eq!((context.user_regs.rdx, context.gdt_frames[..3].to_vec()), (1, vec![2, 3, 104]));
            assert_eq!(
                (context.ctrlreg[3], context.ctrlreg[1]),
                (5 << 12, if user == 0 { 0 } else { user | 1 })
            );
            localise(&mut context, true, |pfn, _| Ok::<u64, ()>(pfn + 100)).unwrap();
            assert_eq!(context, before);
        }
    }

    #[test]
    fn a_frame_that_has_no_number_is_named() {
        let mut context = VcpuGuestContext { gdt_ents: u64::MAX, ..Default::default() };
        let refuse = |at| move |frame, what| if frame == at { Err(what) } else { Ok(frame) };
        assert_eq!(canonicalise(&mut context, false, refuse(0)), Err("a page of the GDT"));
        context.gdt_ents = 0;
        assert_eq!(canonicalise(&mut context, false, refuse(0)), Err("the kernel's page table"));
        assert_eq!(canonicalise(&mut context, true, refuse(0)), Err("start_info"));
        context.ctrlreg[1] = 7 << 12;
        assert_eq!(canonicalise(&mut context, true, refuse(7)), Err("the user's page table"));
        assert_eq!(localise(&mut context, true, refuse(7)), Ok(()), "bit 0 says that there is none");
        assert_eq!(context.ctrlreg[1], 0);
    }
}
