//! Text of users inside Markdown: label names, names of data sets and models.

/// The text as Markdown that shows it as it is, on one line: no emphasis, link, HTML or table cell of its own.
#[must_use]
pub(super) fn escape(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut escaped = String::with_capacity(text.len());
    for (index, &c) in characters.iter().enumerate() {
        let is_inside_a_word = || {
            let neighbour = |index: Option<usize>| index.and_then(|index| characters.get(index));
            [index.checked_sub(1), Some(index + 1)]
                .into_iter()
                .all(|index| neighbour(index).is_some_and(|c| c.is_alphanumeric()))
        };
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => escaped.push(' '),
            // An underscore inside a word emphasises nothing.
            '_' if is_inside_a_word() => escaped.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' | '#' | '!' => escaped.extend(['\\', c]),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_show_as_they_are_whatever_they_hold() {
        for (text, expected) in [
            ("use_gameplaying", "use_gameplaying"),
            ("_x_", "\\_x\\_"),
            ("*x* a|b [l](u)", "\\*x\\* a\\|b \\[l\\](u)"),
            ("<b>urgent</b>", "&lt;b&gt;urgent&lt;/b&gt;"),
            ("AT&amp;T", "AT&amp;amp;T"),
            ("first\r\nsecond\u{2028}third", "first  second third"),
            ("a\\|b", "a\\\\\\|b"),
            ("日本_語 $x$ ~~y~~ `z`", "日本_語 \\$x\\$ \\~\\~y\\~\\~ \\`z\\`"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }
}
