//! Text of strangers, before people read it: what an agent sends must not talk to a terminal, nor
//! hide a part of itself or show it in another order.

/// The text with everything invisible written out, but for what `keep` names of line breaks and tabs.
fn visible(text: &str, keep: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if keep.contains(&letter) || !is_hidden(letter) {
            shown.push(letter);
        } else {
            shown.extend(letter.escape_default());
        }
    }
    shown
}

/// On several lines, as it was written.
pub fn block(text: &str) -> String {
    visible(text, &['\n', '\t'])
}

/// On one line.
pub fn line(text: &str) -> String {
    visible(text, &[])
}

/// On one line, of so many letters at most.
pub fn short(text: &str, most: usize) -> String {
    let mut letters = text.chars();
    let mut start: String = letters.by_ref().take(most).collect();
    if letters.next().is_some() {
        start.push_str("...");
    }
    line(&start)
}

/// Controls, and the format characters of Unicode (category Cf) with the separators of lines: among
/// them those that turn the direction of writing, and those of no width.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{ad}'
                | '\u{34f}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_hidden() {
        assert_eq!(line("select 'ä' \u{1f600}"), "select 'ä' \u{1f600}");
        assert_eq!(
            line("a\u{1b}[2Kb\nc\u{202e}d\u{200b}"),
            "a\\u{1b}[2Kb\\nc\\u{202e}d\\u{200b}"
        );
        assert_eq!(block("a\n\tb\r"), "a\n\tb\\r");
        assert_eq!(short("abcdef", 3), "abc...");
        assert_eq!(short("abc", 3), "abc");
    }
}
