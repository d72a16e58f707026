//! Small images whose calls go deep.

use super::super::*;

/// An instruction; functions are named by their number.
#[derive(Clone, Copy)]
enum Op {
    Call(usize),
    Jump(usize),
    /// A branch that may be taken.
    Branch(usize),
    Ret,
    /// An instruction that ends in a trap.
    Trap,
    Bytes(&'static [u8]),
}
use Op::*;

/// The functions that rules name, ahead of those of a test.
const FILL: usize = 0;
const INDIRECT: usize = 1;
/// Nothing calls deeper than what a handler of interrupts calls.
const HANDLER: usize = 2;
const FIRST: usize = 3;

const RETURNS: Returns = Returns { fill: "f0", indirect: "f1", interrupting: &["f2"], by_hand: &["f99"] };
const RULES: Rules =
    Rules { max_frame_bytes: 64, fpu_switch: &[], indirect_branches: false, returns: Some(RETURNS) };

fn address(function: usize) -> u64 {
    0x1000 * (1 + function as u64)
}

fn bytes(ops: &[Op], mut at: u64) -> Vec<u8> {
    let mut code = Vec::new();
    for op in ops {
        let (opcode, target): (&[u8], _) = match *op {
            Call(target) => (b"\xe8", Some(target)),
            Jump(target) => (b"\xe9", Some(target)),
            Branch(target) => (b"\x0f\x85", Some(target)),
            Ret => (b"\xc3", None),
            Trap => (b"\x0f\x0b", None),
            Bytes(bytes) => (bytes, None),
        };
        code.extend_from_slice(opcode);
        at += opcode.len() as u64;
        if let Some(target) = target {
            at += 4;
            code.extend_from_slice(&(address(target).wrapping_sub(at) as u32).to_le_bytes());
        }
    }
    code
}

/// What the check says of functions, the first of which has number [`FIRST`], with a handler that is made of `handler`.
fn report_of(handler: &[Op], functions: &[Vec<Op>], data: &[u8]) -> Report {
    let thunk = [Call(HANDLER), Trap].to_vec();
    let all = [&[vec![Ret], thunk, handler.to_vec()][..], functions].concat();
    let names = (0..all.len()).map(|number| (address(number), format!("f{number}"))).collect();
    let mut checker = Checker::new(&RULES, names);
    for (number, ops) in all.iter().enumerate() {
        checker.code(&bytes(ops, address(number)), address(number));
    }
    checker.addresses(data);
    checker.returns(&RETURNS).unwrap();
    checker.report
}

/// The functions with a problem.
fn found(functions: &[Vec<Op>]) -> Vec<String> {
    let report = report_of(&[Call(FILL), Ret], functions, b"");
    report.problems.into_iter().map(|problem| problem.function).collect()
}

/// Functions of which each calls the next, `calls` in all.
fn chain(calls: usize) -> Vec<Vec<Op>> {
    let mut functions: Vec<_> = (0..calls).map(|number| vec![Call(FIRST + number + 1), Ret]).collect();
    functions.push(vec![Ret]);
    functions
}

#[test]
fn calls_may_be_as_deep_as_the_stack() {
    assert_eq!(found(&chain(12)), [""; 0]);
    let report = report_of(&[Call(FILL), Ret], &chain(13), b"");
    let [problem] = &report.problems[..] else { panic!("one problem: {report}") };
    assert_eq!((problem.address, problem.function.as_str()), (address(FIRST), "f3"));
    assert!(
        problem
            .what
            .ends_with("behind f3 > f4 > f5 > f6 > f7 > f8 > f9 > f10 > f11 > f12 > f13 > f14 > f15 > f16")
    );
    assert_eq!(report.fewest, Some((0, "f3".to_string())));
    // A tail call is no call.
    let mut functions = chain(13);
    functions[5] = vec![Jump(FIRST + 6)];
    assert_eq!(found(&functions), [""; 0]);
}

#[test]
fn a_full_stack_behind_the_calls_is_enough() {
    for (ops, count) in [
        (vec![Call(FIRST + 7), Call(FILL), Ret], 0),
        (vec![Call(FIRST + 7), Jump(FILL)], 0),
        // Ahead of the calls.
        (vec![Call(FILL), Call(FIRST + 7), Ret], 1),
        // On one way out, and not on the other: that is to a function that returns.
        (vec![Call(FIRST + 7), Branch(FIRST + 13), Call(FILL), Ret], 1),
    ] {
        let mut functions = chain(13);
        functions[6] = ops;
        assert_eq!(found(&functions).len(), count);
    }
}

#[test]
fn recursion_is_found() {
    assert_eq!(found(&[vec![Branch(FIRST + 1), Ret], vec![Call(FIRST), Ret]]).len(), 2);
    assert_eq!(found(&[vec![Branch(FIRST + 1), Ret], vec![Call(FIRST), Call(FILL), Ret]]), [""; 0]);
}

#[test]
fn what_never_returns_does_not_count() {
    let mut functions = chain(20);
    functions[20] = vec![Trap];
    assert_eq!(found(&functions), [""; 0]);
    // Neither does one that returns to a guest.
    functions[20] = vec![Bytes(b"\x48\xcf")];
    assert_eq!(found(&functions), [""; 0]);
}

#[test]
fn an_indirect_call_is_two_deep() {
    for (calls, count) in [(10, 0), (11, 1)] {
        for last in [[Call(INDIRECT), Ret], [Jump(INDIRECT), Trap]] {
            let mut functions = chain(calls);
            functions[calls] = last.to_vec();
            assert_eq!(found(&functions).len(), count);
        }
    }
}

#[test]
fn handlers_of_interrupts_end_with_a_full_stack() {
    let report = |handler: &[Op]| report_of(handler, &chain(3), b"").problems.len();
    assert_eq!(report(&[Call(FIRST), Call(FILL), Ret]), 0);
    assert_eq!(report(&[Call(FIRST), Jump(FILL)]), 0);
    assert_eq!(report(&[Ret]), 1);
    assert_eq!(report(&[Call(FILL), Call(FIRST), Ret]), 1);
    assert_eq!(report(&[Branch(FIRST), Call(FILL), Ret]), 1, "one of two ways");
}

#[test]
fn targets_of_indirect_calls_have_no_arguments_on_the_stack() {
    // push rbp; mov rbp, rsp; mov rax, [rbp+16]; pop rbp; ret
    let reads = Bytes(b"\x55\x48\x89\xe5\x48\x8b\x45\x10\x5d\xc3");
    let count = |functions: &[Vec<Op>], data: &[u8]| report_of(&[Jump(FILL)], functions, data).problems.len();
    assert_eq!(count(&[vec![reads]], b""), 0, "whose address nobody takes");
    assert_eq!(count(&[vec![reads]], &address(FIRST).to_le_bytes()), 1, "in data");
    // lea rax, [rip + 0xff8], from function FIRST to the next; mov eax, 0x5000
    for takes in [Bytes(b"\x48\x8d\x05\xf9\x0f\x00\x00\xc3"), Bytes(b"\xb8\x00\x50\x00\x00\xc3")] {
        assert_eq!(count(&[vec![takes], vec![reads]], b""), 1);
    }
    // mov rax, [rbp-16]: a variable
    let keeps = Bytes(b"\x55\x48\x89\xe5\x48\x83\xec\x10\x48\x8b\x45\xf0\x48\x83\xc4\x10\x5d\xc3");
    assert_eq!(count(&[vec![keeps]], &address(FIRST).to_le_bytes()), 0);
}

#[test]
fn an_image_without_what_the_rules_name_is_an_error() {
    let mut checker = Checker::new(&RULES, vec![(0x1000, "f0".to_string())]);
    assert!(checker.returns(&RETURNS).is_err());
}
