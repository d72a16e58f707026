//! Small pieces of code that pass the check or fail it.

use super::*;

const RULES: Rules =
    Rules { max_frame_bytes: 64, fpu_switch: &["fpu::"], indirect_branches: false, returns: None };

/// What the check says of one function's bytes.
fn checked(name: &str, bytes: &[u8]) -> Report {
    let mut checker = Checker::new(&RULES, vec![(0x1000, name.to_string())]);
    checker.code(bytes, 0x1000);
    checker.report
}

fn problems(bytes: &[u8]) -> Vec<String> {
    checked("f", bytes).problems.into_iter().map(|problem| problem.what).collect()
}

#[test]
fn plain_code_passes() {
    // push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp-8], rdi; pause; lfence; add rsp, 16; pop rbp; ret
    let code =
        b"\x55\x48\x89\xe5\x48\x83\xec\x10\x48\x89\x7d\xf8\xf3\x90\x0f\xae\xe8\x48\x83\xc4\x10\x5d\xc3";
    let report = checked("f", code);
    assert_eq!((report.problems.len(), report.instructions, report.deepest[0].0), (0, 9, 24));
}

#[test]
fn vector_and_x87_code_fails() {
    assert_eq!(problems(b"\x0f\x10\x07\xc3").len(), 1, "movups xmm0, [rdi]");
    assert_eq!(problems(b"\xd9\xe8\xc3").len(), 1, "fld1");
    assert_eq!(problems(b"\x66\x0f\xef\xc0\xc3").len(), 1, "pxor xmm0, xmm0");
    assert_eq!(problems(b"\xf2\x0f\x59\xc1\xc3").len(), 1, "mulsd xmm0, xmm1");
    assert_eq!(problems(b"\xc5\xfc\x77\xc3").len(), 1, "vzeroall");
}

#[test]
fn only_the_switch_may_save_the_state() {
    let save = b"\x48\x0f\xae\x07\xc3"; // fxsave64 [rdi]
    assert_eq!(checked("fpu::save", save).problems.len(), 0);
    assert_eq!(checked("other::save", save).problems.len(), 1);
    assert_eq!(checked("fpu::add", b"\xf2\x0f\x59\xc1\xc3").problems.len(), 1, "mulsd is no switch");
    assert_eq!(checked("f", b"\x0f\x01\xd0\xc3").problems.len(), 0, "xgetbv touches no such register");
}

#[test]
fn the_red_zone_is_found_by_either_register() {
    assert_eq!(problems(b"\x48\x89\x7c\x24\xf8\xc3").len(), 1, "mov [rsp-8], rdi");
    // push rbp; mov rbp, rsp; mov [rbp-8], rdi; pop rbp; ret
    assert_eq!(problems(b"\x55\x48\x89\xe5\x48\x89\x7d\xf8\x5d\xc3").len(), 1);
    // lea rax, [rsp-8]: an address alone
    assert_eq!(problems(b"\x48\x8d\x44\x24\xf8\xc3").len(), 0);
}

#[test]
fn a_frame_over_the_cap_fails_at_it_passes() {
    // sub rsp, N; add rsp, N; ret
    assert_eq!(problems(b"\x48\x83\xec\x40\x48\x83\xc4\x40\xc3").len(), 0);
    assert_eq!(problems(b"\x48\x83\xec\x48\x48\x83\xc4\x48\xc3").len(), 1);
    // A stack probe's loop: lea r11, [rsp-0x3000]; sub rsp, 0x1000; mov [rsp], 0; cmp rsp, r11; jne
    let probe = b"\x4c\x8d\x9c\x24\x00\xd0\xff\xff\x48\x81\xec\x00\x10\x00\x00\x48\xc7\x04\x24\x00\x00\x00\x00\x4c\x39\xdc\x75\xec\xc3";
    assert_eq!(checked("f", probe).deepest[0].0, 0x3000);
}

#[test]
fn code_behind_a_return_has_its_branchs_depth() {
    // push rbx; test edi, edi; je L; pop rbx; ret; L: push rcx; pop rcx; pop rbx; ret
    let code = b"\x53\x85\xff\x74\x02\x5b\xc3\x51\x59\x5b\xc3";
    assert_eq!(checked("f", code).deepest[0].0, 16);
}

#[test]
fn segments_that_processors_ignore_fail() {
    // rep movsq behind prefixes of DS; mov rax, ss:[rdi]
    for bytes in [&b"\x3e\x3e\xf3\x48\xa5"[..], b"\x36\x48\x8b\x07"] {
        assert_eq!(problems(bytes).len(), 1);
    }
    // rep rep rep movsq; mov rax, gs:[rdi]; nop cs:[rax+rax]
    for bytes in
        [&b"\xf3\xf3\xf3\x48\xa5"[..], b"\x65\x48\x8b\x07", b"\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00"]
    {
        assert_eq!(problems(bytes), [""; 0]);
    }
}

#[test]
fn indirect_branches_fail() {
    for (bytes, text) in [
        (&b"\xff\xe0"[..], "jmp rax"),
        (b"\xff\xd6", "call rsi"),
        (b"\xff\x20", "jmp [rax]"),
        (b"\xff\x15\x00\x00\x00\x00", "call [rip]"),
        (b"\xff\x2e", "jmp far [rsi]"),
        (b"\xff\x1e", "call far [rsi]"),
        (b"\x3e\xff\xe0", "notrack jmp rax"),
    ] {
        assert_eq!(problems(bytes).len(), 1, "{text}");
        let rules = Rules { indirect_branches: true, ..RULES };
        let mut checker = Checker::new(&rules, vec![(0x1000, "f".to_string())]);
        checker.code(bytes, 0x1000);
        assert_eq!(checker.report.problems, [], "{text}");
    }
}

#[test]
fn direct_branches_and_retpolines_pass() {
    // call L; trap: pause; lfence; jmp trap; L: mov [rsp], r11; ret
    let thunk = b"\xe8\x07\x00\x00\x00\xf3\x90\x0f\xae\xe8\xeb\xf9\x4c\x89\x1c\x24\xc3";
    assert_eq!(problems(thunk), [""; 0]);
    // jmp, call, je, ret, iretq, syscall
    let direct = b"\xeb\x00\xe8\x00\x00\x00\x00\x74\x00\xc3\x48\xcf\x0f\x05\xc3";
    assert_eq!(problems(direct), [""; 0]);
}

#[test]
fn undecodable_bytes_fail() {
    assert_eq!(problems(b"\x06\xc3").len(), 1);
    assert_eq!(problems(b"\x0f").len(), 1);
}

#[test]
fn functions_are_told_apart_by_their_symbols() {
    let mut checker = Checker::new(&RULES, vec![(0x1000, "one".into()), (0x1001, "two".into())]);
    checker.code(b"\xc3\xd9\xe8\xc3", 0x1000);
    let problem = &checker.report.problems[0];
    assert_eq!((problem.address, problem.function.as_str()), (0x1001, "two"));
}

#[test]
fn a_file_that_is_no_image_is_an_error() {
    assert!(check(b"", &RULES).is_err());
    assert!(check(b"\x7fELF", &RULES).is_err());
}
