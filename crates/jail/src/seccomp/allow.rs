//! Filters that are lists of what is allowed.
//!
//! A list is a table of [`Rule`]s: a system call, a condition on its arguments, and why the program
//! needs it. A call that no rule allows fails with EPERM. It does not end the process: libraries
//! try calls that they can do without, and a monitor that the next C library kills is worse than
//! one whose attacker may try again what fails for ever.
//!
//! Conditions see numbers only. Where the kernel takes an `int` they compare the low half of an
//! argument, as the kernel does; [`When::Null`] compares all of it.

use libc::{BPF_JEQ, BPF_JSET, SECCOMP_RET_ALLOW, c_long, sock_filter};

use super::Filter;
use super::bpf::{and, answer, jump, load_high, load_low, load_number, on, prologue};
use super::{ABSENT, DENY};

/// A system call that is allowed. Several rules for one call allow it if one of them does.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its number.
    pub call: c_long,
    /// On what condition.
    pub when: When,
    /// What needs it.
    pub why: &'static str,
}

/// A condition on the arguments of a system call, which are counted from 0.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// None.
    Always,
    /// The low half of an argument is one of these.
    OneOf(u8, &'static [u32]),
    /// The low half of an argument, less the bits that are not in the mask, is one of these.
    Masked(u8, u32, &'static [u32]),
    /// The low half of an argument has none of these bits.
    Without(u8, u32),
    /// All of an argument is zero, as a null pointer is.
    Null(u8),
    /// All of these.
    All(&'static [When]),
}

/// Shorthand for a [`Rule`].
pub const fn allow(call: c_long, when: When, why: &'static str) -> Rule {
    Rule { call, when, why }
}

impl Filter {
    /// Allows what one of the rules of one of the lists allows and nothing else. Rules that come
    /// early are found fast.
    pub fn allowing(lists: &[&[Rule]]) -> Self {
        let mut program = prologue();
        for rule in lists.iter().copied().flatten() {
            let mut body = Vec::new();
            // A condition that does not hold leads to the next rule.
            condition(rule.when, &mut body);
            let conditions = body.len();
            body.push(answer(SECCOMP_RET_ALLOW));
            if conditions > 0 {
                body.push(load_number());
                let end = body.len() - 1;
                for (at, instruction) in body.iter_mut().enumerate() {
                    land(instruction, at, end);
                }
            }
            on(&mut program, rule.call, &body);
        }
        // clone3 passes its flags by pointer, which a filter cannot read. ENOSYS makes the C
        // library fall back to clone, whose flags can be checked.
        on(&mut program, libc::SYS_clone3, &[answer(ABSENT)]);
        program.push(answer(DENY));
        Self { program }
    }
}

/// Stands for "to the next rule" in a jump whose distance is not known yet. No condition is so long
/// that this could be a distance.
const NEXT_RULE: u8 = u8::MAX;

/// Gives a jump to the next rule its distance.
fn land(instruction: &mut sock_filter, at: usize, end: usize) {
    let distance = u8::try_from(end - at.min(end)).map(|d| d.saturating_sub(1));
    for jump in [&mut instruction.jt, &mut instruction.jf] {
        if *jump == NEXT_RULE {
            *jump = distance.ok().filter(|d| *d < NEXT_RULE).expect("a condition of a short list");
        }
    }
}

/// Appends instructions that go on behind their end if the condition holds.
fn condition(when: When, body: &mut Vec<sock_filter>) {
    match when {
        When::Always => {}
        When::OneOf(argument, values) => {
            body.push(load_low(argument));
            one_of(values, body);
        }
        When::Masked(argument, mask, values) => {
            body.extend([load_low(argument), and(mask)]);
            one_of(values, body);
        }
        When::Without(argument, bits) => {
            body.extend([load_low(argument), jump(BPF_JSET, bits, NEXT_RULE, 0)]);
        }
        When::Null(argument) => {
            for half in [load_low(argument), load_high(argument)] {
                body.extend([half, jump(BPF_JEQ, 0, 0, NEXT_RULE)]);
            }
        }
        When::All(conditions) => conditions.iter().for_each(|&when| condition(when, body)),
    }
}

fn one_of(values: &[u32], body: &mut Vec<sock_filter>) {
    for (index, &value) in values.iter().enumerate() {
        let left = values.len() - 1 - index;
        let over_the_others = u8::try_from(left).expect("a short list");
        let otherwise = if left == 0 { NEXT_RULE } else { 0 };
        body.push(jump(BPF_JEQ, value, over_the_others, otherwise));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const RULES: &[Rule] = &[
        allow(1, When::Always, ""),
        allow(2, When::OneOf(0, &[5, 7, 9]), ""),
        allow(2, When::Null(1), ""),
        allow(3, When::All(&[When::OneOf(5, &[1]), When::Without(2, 0b110), When::Null(3)]), ""),
        allow(4, When::Masked(1, 0xf, &[1, 2]), ""),
    ];

    /// What the rules say, by the plain meaning of the words.
    fn meaning(call: c_long, args: [u64; 6]) -> bool {
        fn holds(when: When, args: &[u64; 6]) -> bool {
            let low = |n: u8| args[usize::from(n)] as u32;
            match when {
                When::Always => true,
                When::OneOf(n, values) => values.contains(&low(n)),
                When::Masked(n, mask, values) => values.contains(&(low(n) & mask)),
                When::Without(n, bits) => low(n) & bits == 0,
                When::Null(n) => args[usize::from(n)] == 0,
                When::All(all) => all.iter().all(|&when| holds(when, args)),
            }
        }
        RULES.iter().any(|rule| rule.call == call && holds(rule.when, &args))
    }

    #[test]
    fn a_filter_does_what_its_rules_say() {
        let filter = Filter::allowing(&[&RULES[..2], &RULES[2..]]);
        let values = [0, 1, 2, 5, 6, 7, 9, 0x11, 0x12, 1 << 32, 1 << 63, u64::MAX, (1 << 32) + 5];
        let mut allowed = 0;
        for call in 0..6 {
            for (a, b) in values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))) {
                for args in [[a, b, 0, 0, 0, 1], [b, a, a, b, 0, 1], [9, 9, a, 0, 0, b], [a; 6]] {
                    let expected = meaning(call, args);
                    let verdict =
                        if expected { Verdict::Allow } else { Verdict::Fail(libc::EPERM) };
                    assert_eq!(filter.decide(call, args), verdict, "call {call} {args:x?}");
                    allowed += usize::from(expected);
                }
            }
        }
        assert!(allowed > 1000, "{allowed}");
    }

    #[test]
    fn a_list_as_long_as_a_jump_works_to_its_last_entry() {
        const MANY: [u32; 250] = {
            let mut many = [0; 250];
            let mut at = 0;
            while at < many.len() {
                many[at] = at as u32 * 3;
                at += 1;
            }
            many
        };
        const RULE: Rule = allow(1, When::OneOf(1, &MANY), "");
        let filter = Filter::allowing(&[&[RULE]]);
        for value in 0..1000 {
            let expected = value % 3 == 0 && value < 750;
            let got = filter.decide(1, [0, value, 0, 0, 0, 0]) == Verdict::Allow;
            assert_eq!(got, expected, "{value}");
        }
    }
}
