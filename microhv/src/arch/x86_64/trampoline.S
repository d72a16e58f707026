/* Where another CPU starts, in real mode, on a page below 1 MiB to which this is copied: cs is the page, ip is 0.
   Out: 64-bit mode with the boot CPU's tables for the start, on the stack in `start_stack`, which the CPU takes; other_main().
   A CPU that finds no stack there came too late, and stops. */
    .section .boot.text, "ax", @progbits
    .code16
    .globl start_page
start_page:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl start_gdtr - start_page
    movl $0x20, %eax                    /* PAE */
    movl %eax, %cr4
    movl start_cr3 - start_page, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax                    /* SCE LME NXE */
    wrmsr
    movl $0x80010033, %eax              /* PG WP NE ET MP PE */
    movl %eax, %cr0
    ljmpl *(start_target - start_page)
    .code64
start_long:
    movabsq $start_stack, %rdx
    xorl %eax, %eax
    xorl %ebp, %ebp
    xchgq %rax, (%rdx)
    testq %rax, %rax
    je 1f
    movq %rax, %rsp
    movabsq $other_main, %rax
    call *%rax
1:  cli
    hlt
    jmp 1b
    .balign 8
start_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
start_gdtr:
    .short start_gdtr - start_gdt - 1
    /* Addresses within the page, to which the page's own is added in the copy. */
    .globl start_gdt_address, start_target, start_cr3, start_page_end
start_gdt_address:
    .long start_gdt - start_page
start_target:
    .long start_long - start_page
    .short 8
start_cr3:
    .long 0
start_page_end:
    .text
