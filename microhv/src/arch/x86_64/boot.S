/* Power-on entry, 32-bit protected mode, from a multiboot1 or multiboot2 loader.
   In:  eax = loader magic, ebx = physical address of its information structure.
   Out: 64-bit mode on the boot stack, first 4 GiB mapped 1:1 and in the direct map, the image
        at its link address; boot_main(magic: edi, info: rsi). Rust code loads the other segments. */
    .set VIRT, 0xffff82d080000000

    .section .boot.header, "ax", @progbits
    .balign 8
boot_mb1_header:
    .long 0x1badb002
    .long 0x00010003                    /* page-aligned modules, memory map, address fields */
    .long -(0x1badb002 + 0x00010003)
    .long boot_mb1_header - VIRT        /* header_addr */
    .long __image_start - VIRT          /* load_addr */
    .long __data_end - VIRT             /* load_end_addr */
    .long __image_end - VIRT            /* bss_end_addr */
    .long start32 - VIRT                /* entry_addr */

    .balign 8
boot_mb2_header:
    .long 0xe85250d6, 0, 2f - boot_mb2_header, -(0xe85250d6 + 0 + (2f - boot_mb2_header))
    .balign 8
    .short 3, 0                         /* entry address tag */
    .long 12
    .long start32 - VIRT
    .balign 8
    .short 4, 1                         /* console, optional: text will do */
    .long 12, 2
    .balign 8
    .short 5, 1                         /* framebuffer, optional: any size and depth */
    .long 20, 0, 0, 0
    .balign 8
    .short 6, 0                         /* modules on page boundaries */
    .long 8
    .balign 8
    .short 0, 0
    .long 8
2:

    .section .boot.text, "ax", @progbits
    .code32
    .globl start32
start32:
    cli
    cld
    movl %eax, %esi
    movl %ebx, %edi
    movl $(boot_stack_top - VIRT), %esp
    /* L4[0], L4[262] -> boot_l3_low (1:1, direct map); L4[261] -> boot_l3_image (link address) */
    movl $(boot_l4 - VIRT), %ecx
    movl $(boot_l3_low - VIRT + 3), (%ecx)
    movl $(boot_l3_low - VIRT + 3), 262*8(%ecx)
    movl $(boot_l3_image - VIRT + 3), 261*8(%ecx)
    movl $(boot_l3_low - VIRT), %ecx
    .irp entry, 0, 1, 2, 3
    movl $(boot_l2 - VIRT + 0x1000 * \entry + 3), 8 * \entry(%ecx)
    .endr
    movl $(boot_l3_image - VIRT), %ecx
    movl $(boot_l2 - VIRT + 3), 322*8(%ecx)
    movl $(boot_l2 - VIRT), %ecx
    movl $0x83, %eax                    /* P RW PS */
    xorl %edx, %edx
3:  movl %eax, (%ecx,%edx,8)
    addl $0x200000, %eax
    incl %edx
    cmpl $2048, %edx
    jne 3b
    movl %cr4, %eax
    orl $0x20, %eax                     /* PAE */
    movl %eax, %cr4
    movl $(boot_l4 - VIRT), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax                    /* SCE LME NXE */
    wrmsr
    movl $0x80010033, %eax              /* PG WP NE ET MP PE */
    movl %eax, %cr0
    lgdt (boot_gdtr - VIRT)
    ljmpl $8, $(4f - VIRT)
    .code64
4:  movabsq $5f, %rax
    jmpq *%rax
5:  movabsq $boot_stack_top, %rsp
    xorl %ebp, %ebp
    xchgl %edi, %esi
    call boot_main
6:  hlt
    jmp 6b

    .section .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
boot_gdt_end:
boot_gdtr:
    .short boot_gdt_end - boot_gdt - 1
    .long boot_gdt - VIRT

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .globl boot_l4
boot_l4:       .skip 4096
boot_l3_low:   .skip 4096
boot_l3_image: .skip 4096
boot_l2:       .skip 4096*4
    .skip 16384
boot_stack_top:
    .text
