# A PV kernel that says in one of the older ways that it is one, prints that it runs and powers off. `-DNOTES`: ELF notes in
# a section, for which there is no segment. `-DGUEST`: the section with text, all addresses from 0. `-DHIGH`: the same, with
# physical addresses that are virtual ones.
#
# ABI: `xen/include/public/elfnote.h`; `struct sched_shutdown`.
    .intel_syntax noprefix
    .globl _start

    .set CONSOLE_IO, 18
    .set SCHED_OP, 29

    .text
_start:
    xor edi, edi                        # CONSOLEIO_write
    mov esi, offset end - line
    lea rdx, [rip + line]
    call hypercall_page + 32 * CONSOLE_IO
    mov edi, 2                          # SCHEDOP_shutdown
    lea rsi, [rip + reason]
    call hypercall_page + 32 * SCHED_OP
    ud2

    .balign 4
reason:
    .long 0                             # SHUTDOWN_poweroff

#ifdef NOTES
line:
    .ascii "kernel: NOTES runs\n"
#elif defined(GUEST)
line:
    .ascii "kernel: GUEST runs\n"
#else
line:
    .ascii "kernel: HIGH runs\n"
#endif
end:

    .balign 4096
hypercall_page:
    .skip 4096

#ifdef NOTES
    .macro xen_note type, data:vararg
    .balign 4
    .long 4, 8f - 7f, \type
    .asciz "Xen"
7:  \data
8:  .balign 4
    .endm
    # Not "a": no part of the image, and no segment's.
    .section .note.Xen, "", @note
    xen_note 1, .quad _start
    xen_note 2, .quad hypercall_page
    xen_note 3, .quad 0xffffffff80000000
    xen_note 4, .quad 0xffffffff80000000
    xen_note 5, .asciz "xen-3.0"
    xen_note 6, .asciz "small"
    xen_note 8, .asciz "generic"
#else
    .section __xen_guest, "", @progbits
    .ascii "GUEST_OS=small,XEN_VER=xen-3.0"
#ifdef GUEST
    .ascii ",VIRT_BASE=0x0,ELF_PADDR_OFFSET=0x0"
#else
    .ascii ",VIRT_BASE=0xffffffff80000000"
#endif
    .ascii ",HYPERCALL_PAGE=0x1,PAE=yes,LOADER=generic"
    .byte 0
#endif
