//! Folds the many ways of writing the same mathematics in Unicode into one: LaTeX in ASCII.

use std::borrow::Cow;
use std::sync::LazyLock;

/// Zeros of the decimal digit blocks other than ASCII and full width: each block has ten digits in order.
const ZEROS: &[u32] = &[
    0x0660, 0x06f0, 0x07c0, 0x0966, 0x09e6, 0x0a66, 0x0ae6, 0x0b66, 0x0be6, 0x0c66, 0x0ce6, 0x0d66, 0x0de6, 0x0e50, 0x0ed0, 0x0f20, 0x1040,
    0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50,
    0xabf0, 0x104a0, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6,
];

/// Characters with one fixed reading.
const TABLE: &[(char, &str)] = &[
    ('\u{a0}', " "),
    ('¬', "\\neg "),
    ('°', "^{\\circ}"),
    ('±', "\\pm "),
    ('´', "'"),
    ('·', "\\cdot "),
    ('×', "\\times "),
    ('÷', "\\div "),
    ('¼', "\\frac{1}{4}"),
    ('½', "\\frac{1}{2}"),
    ('¾', "\\frac{3}{4}"),
    ('Α', "A"),
    ('Β', "B"),
    ('Γ', "\\Gamma "),
    ('Δ', "\\Delta "),
    ('Θ', "\\Theta "),
    ('Λ', "\\Lambda "),
    ('Ξ', "\\Xi "),
    ('Π', "\\Pi "),
    ('Σ', "\\Sigma "),
    ('Φ', "\\Phi "),
    ('Ψ', "\\Psi "),
    ('Ω', "\\Omega "),
    ('α', "\\alpha "),
    ('β', "\\beta "),
    ('γ', "\\gamma "),
    ('δ', "\\delta "),
    ('ε', "\\epsilon "),
    ('ζ', "\\zeta "),
    ('η', "\\eta "),
    ('θ', "\\theta "),
    ('ι', "\\iota "),
    ('κ', "\\kappa "),
    ('λ', "\\lambda "),
    ('μ', "\\mu "),
    ('µ', "\\mu "),
    ('ν', "\\nu "),
    ('ξ', "\\xi "),
    ('π', "\\pi "),
    ('ρ', "\\rho "),
    ('ς', "\\sigma "),
    ('σ', "\\sigma "),
    ('τ', "\\tau "),
    ('υ', "\\upsilon "),
    ('φ', "\\phi "),
    ('ϕ', "\\phi "),
    ('χ', "\\chi "),
    ('ψ', "\\psi "),
    ('ω', "\\omega "),
    ('ϵ', "\\epsilon "),
    ('ϑ', "\\theta "),
    ('‐', "-"),
    ('‑', "-"),
    ('‒', "-"),
    ('–', "-"),
    ('—', "-"),
    ('―', "-"),
    ('−', "-"),
    ('﹣', "-"),
    ('˗', "-"),
    ('‘', "'"),
    ('’', "'"),
    ('“', "\""),
    ('”', "\""),
    ('′', "'"),
    ('″', "''"),
    ('…', "\\ldots "),
    ('⋯', "\\ldots "),
    ('‰', "\\permil "),
    ('⁄', "/"),
    ('∕', "/"),
    ('∗', "*"),
    ('∙', "\\cdot "),
    ('⋅', "\\cdot "),
    ('•', "\\cdot "),
    ('⨯', "\\times "),
    ('✕', "\\times "),
    ('ℂ', "\\mathbb{C}"),
    ('ℕ', "\\mathbb{N}"),
    ('ℚ', "\\mathbb{Q}"),
    ('ℝ', "\\mathbb{R}"),
    ('ℤ', "\\mathbb{Z}"),
    ('ℓ', "\\ell "),
    ('ⅈ', "i"),
    ('ⅉ', "j"),
    ('ⅇ', "e"),
    ('ⅆ', "d"),
    ('ℎ', "h"),
    ('⅐', "\\frac{1}{7}"),
    ('⅑', "\\frac{1}{9}"),
    ('⅒', "\\frac{1}{10}"),
    ('⅓', "\\frac{1}{3}"),
    ('⅔', "\\frac{2}{3}"),
    ('⅕', "\\frac{1}{5}"),
    ('⅖', "\\frac{2}{5}"),
    ('⅗', "\\frac{3}{5}"),
    ('⅘', "\\frac{4}{5}"),
    ('⅙', "\\frac{1}{6}"),
    ('⅚', "\\frac{5}{6}"),
    ('⅛', "\\frac{1}{8}"),
    ('⅜', "\\frac{3}{8}"),
    ('⅝', "\\frac{5}{8}"),
    ('⅞', "\\frac{7}{8}"),
    ('→', "\\to "),
    ('⟶', "\\to "),
    ('⇒', "\\Rightarrow "),
    ('∀', "\\forall "),
    ('∂', "\\partial "),
    ('∃', "\\exists "),
    ('∅', "\\emptyset "),
    ('⌀', "\\emptyset "),
    ('∆', "\\Delta "),
    ('∇', "\\nabla "),
    ('∈', "\\in "),
    ('∉', "\\notin "),
    ('∏', "\\prod "),
    ('∑', "\\sum "),
    ('∓', "\\mp "),
    ('∖', "\\setminus "),
    ('∘', "\\circ "),
    ('∝', "\\propto "),
    ('∞', "\\infty "),
    ('∠', "\\angle "),
    ('∣', "|"),
    ('∥', "\\parallel "),
    ('∧', "\\wedge "),
    ('∨', "\\vee "),
    ('∩', "\\cap "),
    ('∪', "\\cup "),
    ('∫', "\\int "),
    ('∶', ":"),
    ('∼', "\\sim "),
    ('≃', "\\approx "),
    ('≈', "\\approx "),
    ('≅', "\\cong "),
    ('≠', "\\ne "),
    ('≡', "\\equiv "),
    ('≤', "\\le "),
    ('≥', "\\ge "),
    ('⩽', "\\le "),
    ('⩾', "\\ge "),
    ('≦', "\\le "),
    ('≧', "\\ge "),
    ('≮', "\\ge "),
    ('≯', "\\le "),
    ('⊂', "\\subset "),
    ('⊆', "\\subseteq "),
    ('⊥', "\\perp "),
    ('⌈', "\\lceil "),
    ('⌉', "\\rceil "),
    ('⌊', "\\lfloor "),
    ('⌋', "\\rfloor "),
    ('⟨', "\\langle "),
    ('⟩', "\\rangle "),
    ('〈', "\\langle "),
    ('〉', "\\rangle "),
    ('△', "\\triangle "),
    ('　', " "),
    ('、', ","),
    ('【', "["),
    ('】', "]"),
    ('￥', "¥"),
    ('％', "\\%"),
    ('﹪', "\\%"),
    ('٪', "\\%"),
    ('٫', "."),
    ('٬', ","),
];

static SORTED: LazyLock<Vec<(char, &str)>> = LazyLock::new(|| {
    let mut table = TABLE.to_vec();
    table.sort_unstable_by_key(|(c, _)| *c);
    table
});

/// The text with one reading for each sign; borrowed when nothing had to change.
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii() && (b >= b' ' || matches!(b, b'\n' | b'\t' | b'\r')) && b != 0x7f) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii() {
            if !c.is_ascii_control() || matches!(c, '\n' | '\t' | '\r') {
                out.push(c);
            }
            continue;
        }
        if let Some((first, open)) = script(c) {
            out.push_str(open);
            out.push(first);
            while let Some((next, _)) = chars.peek().and_then(|c| script(*c)).filter(|(_, o)| *o == open) {
                out.push(next);
                chars.next();
            }
            out.push('}');
        } else if c == '√' || c == '∛' || c == '∜' {
            out.push_str(match c {
                '√' => "\\sqrt",
                '∛' => "\\sqrt[3]",
                _ => "\\sqrt[4]",
            });
            // The sign covers a whole number, where \sqrt covers one digit.
            let mut digits = String::new();
            while let Some(digit) = chars.peek().and_then(|c| digit(*c)) {
                digits.push(digit);
                chars.next();
            }
            if digits.is_empty() {
                out.push(' ');
            } else {
                out.push('{');
                out.push_str(&digits);
                out.push('}');
            }
        } else if let Ok(at) = SORTED.binary_search_by_key(&c, |(c, _)| *c) {
            out.push_str(SORTED[at].1);
        } else if let Some(digit) = digit(c) {
            out.push(digit);
        } else if let Some(letter) = math_letter(c) {
            out.push_str(letter.encode_utf8(&mut [0; 4]));
        } else if !is_invisible(c) {
            out.push(if c.is_whitespace() { ' ' } else { c });
        }
    }
    Cow::Owned(out)
}

fn digit(c: char) -> Option<char> {
    if c.is_ascii_digit() {
        return Some(c);
    }
    let code = c as u32;
    let zero = if (0xff10..=0xff19).contains(&code) { 0xff10 } else { *ZEROS.iter().find(|z| (**z..**z + 10).contains(&code))? };
    char::from_digit(code - zero, 10)
}

/// A superscript or subscript sign: what it is and how its script opens.
fn script(c: char) -> Option<(char, &'static str)> {
    let up = match c {
        '⁰' => '0',
        '¹' => '1',
        '²' => '2',
        '³' => '3',
        '⁴'..='⁹' => char::from_digit(c as u32 - 0x2070, 10)?,
        '⁺' => '+',
        '⁻' => '-',
        '⁼' => '=',
        '⁽' => '(',
        '⁾' => ')',
        'ⁿ' => 'n',
        'ⁱ' => 'i',
        'ˣ' => 'x',
        'ʸ' => 'y',
        'ᵏ' => 'k',
        'ᵐ' => 'm',
        _ => {
            let down = match c {
                '₀'..='₉' => char::from_digit(c as u32 - 0x2080, 10)?,
                '₊' => '+',
                '₋' => '-',
                'ₐ' => 'a',
                'ₑ' => 'e',
                'ₓ' => 'x',
                'ᵢ' => 'i',
                'ⱼ' => 'j',
                'ₖ' => 'k',
                'ₘ' => 'm',
                'ₙ' => 'n',
                _ => return None,
            };
            return Some((down, "_{"));
        }
    };
    Some((up, "^{"))
}

/// Full-width forms and the mathematical alphabets, as plain letters.
fn math_letter(c: char) -> Option<char> {
    let code = c as u32;
    match code {
        0xff01..=0xff5e => char::from_u32(code - 0xfee0),
        0x1d400..=0x1d6a3 => {
            let at = (code - 0x1d400) % 52;
            char::from_u32(if at < 26 { u32::from(b'A') + at } else { u32::from(b'a') + at - 26 })
        }
        _ => None,
    }
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_for_each_sign() {
        let check = |text: &str, expect: &str| assert_eq!(decode(text), expect);
        check("x+1", "x+1");
        check("𝑥¹⁰", "x^{10}");
        check("x₁", "x_{1}");
        check("（１，２）", "(1,2)");
        check("٩٤٥٤", "9454");
        check("√12", "\\sqrt{12}");
        check("√(2)", "\\sqrt (2)");
        check("2½", "2\\frac{1}{2}");
        check("−∞", "-\\infty ");
        check("\u{200b}5\u{0}", "5");
        check("\u{1b}[31m5", "[31m5");
        check("七", "七");
    }
}
