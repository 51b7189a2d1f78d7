//! What merely wraps an answer: dollars, bold marks, boxes, braces.

/// The text inside what merely wraps the whole of it: dollars, bold marks, boxes, `\text{…}`; the flag is set for the last.
pub(crate) fn unwrap(text: &str) -> (&str, bool) {
    let mut is_text = false;
    let mut s = text.trim();
    // The lexer sees through wrappers as well; here they only must not hide what kind of answer it is.
    let (peeled, peeled_text) = peel(s);
    s = peeled;
    is_text |= peeled_text;
    for _ in 0..16 {
        let before = s;
        s = s.trim_matches(|c: char| c.is_whitespace() || c == '`');
        for (open, close) in [("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)"), ("**", "**"), ("\"", "\""), ("“", "”")] {
            if let Some(inner) = s.strip_prefix(open).and_then(|s| s.strip_suffix(close))
                && !inner.contains(open)
                && !inner.contains(close)
            {
                s = inner;
            }
        }
        for command in ["\\boxed", "\\fbox", "\\text", "\\textbf", "\\mathrm", "\\mathbf", "\\textit", "\\mbox", "\\textrm"] {
            if let Some(rest) = s.strip_prefix(command)
                && rest.trim_start().starts_with('{')
                && let Some(inner) = whole_group(rest.trim_start())
            {
                is_text |= command.starts_with("\\text") || command == "\\mathrm" || command == "\\mbox";
                s = inner;
                break;
            }
        }
        let stripped = s.trim_end_matches(['.', ' ', '\n']);
        if !stripped.ends_with("\\ldots") && !s.ends_with("...") {
            s = stripped;
        }
        if s.len() == before.len() {
            break;
        }
    }
    (s, is_text)
}

/// Takes off as many `\text{`, `\boxed{` and bare braces as are around all of the text, in one pass however many there are.
fn peel(text: &str) -> (&str, bool) {
    let bytes = text.as_bytes();
    // Where each wrapper that opens at the start has its inside.
    let mut insides = Vec::new();
    let mut at = 0;
    loop {
        let command = ["{", "\\text{", "\\boxed{", "\\mathbf{", "\\mathrm{", "\\textbf{"].iter().find(|c| text[at..].starts_with(**c));
        match command {
            Some(command) => at += command.len(),
            None => break,
        }
        insides.push((at, command.is_some_and(|c| c.contains("text"))));
    }
    if insides.len() < 2 {
        return (text, false);
    }
    // The wrapper at depth d is around everything if its brace closes d places before the end.
    let mut depth = insides.len();
    let mut around = insides.len();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'{' => depth += 1,
            b'}' => {
                let Some(less) = depth.checked_sub(1) else { return (text, false) };
                depth = less;
                if depth < around && at + 1 + depth != bytes.len() {
                    around = depth;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if around == 0 || depth != 0 {
        return (text, false);
    }
    let (start, _) = insides[around - 1];
    (&text[start..bytes.len() - around], insides[..around].iter().any(|(_, is_text)| *is_text))
}

/// The inside of a group in braces that is all of the text.
fn whole_group(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut depth = 0u32;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return (at + 1 == bytes.len()).then(|| &text[1..at]);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}
