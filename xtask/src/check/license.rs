//! Licence expressions, as in SPDX 2.3 annex D.4, and the older `MIT/Apache-2.0`.

use std::iter::Peekable;

/// Whether an expression is satisfied when `is_allowed` tells it of single licences. One with an
/// exception (`Apache-2.0 WITH LLVM-exception`) is asked for whole. `None` when it is not an
/// expression.
pub fn is_satisfied(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any(&mut words, is_allowed)?;
    words.next().is_none().then_some(result)
}

type Words<'a> = Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words, is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut result = all(words, is_allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= all(words, is_allowed)?;
    }
    Some(result)
}

fn all(words: &mut Words, is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut result = one(words, is_allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, is_allowed)?;
    }
    Some(result)
}

fn one(words: &mut Words, is_allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    match words.next()? {
        "(" => {
            let result = any(words, is_allowed)?;
            words.next_if_eq(&")")?;
            Some(result)
        }
        ")" | "AND" | "OR" | "WITH" => None,
        license if words.next_if_eq(&"WITH").is_some() => {
            Some(is_allowed(&format!("{license} WITH {}", words.next()?)))
        }
        license => Some(is_allowed(license)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: Option<bool>) {
        let allowed = ["MIT", "ISC", "Unicode-3.0"];
        let result = is_satisfied(expression, &|license| allowed.contains(&license));
        assert_eq!(result, expected, "{expression}");
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        check("MIT", Some(true));
        check("GPL-3.0 OR MIT", Some(true));
        check("GPL-3.0/MIT", Some(true));
        check("GPL-3.0 / MIT", Some(true));
        check("GPL-3.0", Some(false));
    }

    #[test]
    fn every_part_of_a_conjunction_counts() {
        check("MIT AND ISC", Some(true));
        check("MIT AND GPL-3.0", Some(false));
        check("(MIT OR Apache-2.0) AND Unicode-3.0", Some(true));
        check("GPL-3.0 OR ISC AND MIT", Some(true));
    }

    #[test]
    fn an_exception_makes_another_licence() {
        check("MIT WITH LLVM-exception", Some(false));
        check("MIT WITH LLVM-exception OR MIT", Some(true));
    }

    #[test]
    fn what_is_no_expression_satisfies_nothing() {
        for broken in ["", "MIT AND", "(MIT", "MIT)", "MIT ISC", "OR", "MIT WITH"] {
            check(broken, None);
        }
    }
}
