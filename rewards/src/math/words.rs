//! The vocabulary: what commands and bare words mean.

use super::ast::{Const, Func, ManyFunc, NamedSet, RelOp, SetOp};

/// The meaning of a command or a known word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Word {
    Func(Func),
    Log,
    Many(ManyFunc),
    Const(Const),
    Symbol(&'static str),
    Infinity,
    Rel(RelOp),
    Congruent,
    SetOp(SetOp),
    Named(NamedSet),
    Frac,
    Binom,
    Over,
    Choose,
    Sqrt,
    Sum,
    Prod,
    Int,
    Lim,
    To,
    Times,
    Divide,
    PlusMinus,
    MinusPlus,
    Mod,
    PMod,
    And,
    Or,
    Mid,
    OpenCurly,
    CloseCurly,
    OpenAngle,
    CloseAngle,
    OpenFloor,
    CloseFloor,
    OpenCeil,
    CloseCeil,
    Circ,
    Prime,
    Overline,
    Dot,
    Accent(&'static str),
    Dots,
    Percent,
    Permil,
    NewRow,
}

/// What a command (without its backslash) does to the lexer.
pub(crate) enum Command {
    Word(Word),
    /// Has no meaning; what it applies to stays.
    Style,
    /// Takes an argument that has no meaning either, such as a length or a colour.
    StyleWithArgument,
    /// The argument is words: `\text`, `\mathrm`.
    Text,
    /// `\mathbb` and `\mathcal`, whose letter may name a set.
    Blackboard,
    /// A box around the answer.
    Begin,
    End,
    Unknown,
}

pub(crate) fn command(name: &str) -> Command {
    if let Some(word) = shared_word(name) {
        return Command::Word(word);
    }
    let word = match name {
        "le" | "leq" | "leqslant" | "leqq" => Word::Rel(RelOp::Le),
        "ge" | "geq" | "geqslant" | "geqq" => Word::Rel(RelOp::Ge),
        "lt" => Word::Rel(RelOp::Lt),
        "gt" => Word::Rel(RelOp::Gt),
        "ne" | "neq" => Word::Rel(RelOp::Ne),
        "approx" | "sim" | "simeq" | "approxeq" | "doteq" => Word::Rel(RelOp::Approx),
        "in" => Word::Rel(RelOp::In),
        "coloneqq" | "triangleq" => Word::Rel(RelOp::Eq),
        "equiv" => Word::Congruent,
        "notin" | "subset" | "subseteq" | "supset" | "supseteq" | "parallel" | "perp" | "cong" | "propto" | "to" | "rightarrow"
        | "Rightarrow" | "implies" | "iff" | "Leftrightarrow" | "longrightarrow" | "mapsto" => match name {
            "to" | "rightarrow" | "longrightarrow" => Word::To,
            _ => Word::Rel(RelOp::Other),
        },
        "cup" | "bigcup" => Word::SetOp(SetOp::Union),
        "cap" | "bigcap" => Word::SetOp(SetOp::Intersection),
        "setminus" | "backslash" | "smallsetminus" => Word::SetOp(SetOp::Difference),
        "emptyset" | "varnothing" | "O" => Word::Named(NamedSet::Empty),
        "N" => Word::Named(NamedSet::Naturals),
        "Z" => Word::Named(NamedSet::Integers),
        "Q" => Word::Named(NamedSet::Rationals),
        "R" | "Reals" => Word::Named(NamedSet::Reals),
        "C" => Word::Named(NamedSet::Complexes),
        "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" => Word::Frac,
        "binom" | "dbinom" | "tbinom" => Word::Binom,
        "over" => Word::Over,
        "atop" | "brack" => return Command::Unknown,
        "sum" => Word::Sum,
        "prod" => Word::Prod,
        "int" => Word::Int,
        "lim" | "limits" => {
            if name == "limits" {
                return Command::Style;
            }
            Word::Lim
        }
        "times" | "cdot" | "ast" | "bullet" => Word::Times,
        "div" => Word::Divide,
        "pm" => Word::PlusMinus,
        "mp" => Word::MinusPlus,
        "bmod" | "mod" => Word::Mod,
        "pmod" => Word::PMod,
        "land" | "wedge" => Word::And,
        "lor" | "vee" => Word::Or,
        "mid" | "vert" => Word::Mid,
        "lvert" | "rvert" => Word::Mid,
        "lbrace" => Word::OpenCurly,
        "rbrace" => Word::CloseCurly,
        "langle" => Word::OpenAngle,
        "rangle" => Word::CloseAngle,
        "lfloor" => Word::OpenFloor,
        "rfloor" => Word::CloseFloor,
        "lceil" => Word::OpenCeil,
        "rceil" => Word::CloseCeil,
        "circ" | "degree" => Word::Circ,
        "prime" => Word::Prime,
        "overline" | "bar" => Word::Overline,
        "dot" => Word::Dot,
        "hat" | "widehat" => Word::Accent("hat"),
        "tilde" | "widetilde" => Word::Accent("tilde"),
        "ddot" => Word::Accent("ddot"),
        "ldots" | "cdots" | "dots" | "dotsc" | "dotsb" | "dotsm" => Word::Dots,
        "permil" => Word::Permil,
        "cr" | "newline" => Word::NewRow,
        "Re" => Word::Func(Func::Re),
        "Im" => Word::Func(Func::Im),
        "text" | "textbf" | "textit" | "textrm" | "textnormal" | "textsf" | "texttt" | "textup" | "emph" | "mathrm" | "mathit"
        | "mathsf" | "mathtt" | "operatorname" | "mbox" | "hbox" | "rm" | "bf" | "mathop" => {
            return if matches!(name, "rm" | "bf") { Command::Style } else { Command::Text };
        }
        "mathbb" | "Bbb" => return Command::Blackboard,
        "left" | "right" | "middle" | "big" | "Big" | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl" | "Bigr" | "biggl" | "biggr" | "Biggl"
        | "Biggr" | "displaystyle" | "textstyle" | "scriptstyle" | "mathbf" | "boldsymbol" | "bm" | "mathcal" | "mathfrak" | "mathscr"
        | "underline" | "boxed" | "fbox" | "framebox" | "vec" | "overrightarrow" | "quad" | "qquad" | "Large" | "large" | "LARGE"
        | "huge" | "Huge" | "small" | "normalsize" | "nolimits" | "hfill" | "bfseries" | "itshape" | "strut" | "mathstrut" | "square"
        | "blacksquare" | "qed" | "hline" | "notag" | "nonumber" | "centering" | "it" | "cancel" | "bcancel" | "ensuremath"
        | "therefore" => {
            return Command::Style;
        }
        "hspace" | "vspace" | "color" | "phantom" | "hphantom" | "vphantom" | "label" | "tag" | "kern" | "textcolor" | "colorbox"
        | "mspace" | "enspace" | "rule" => {
            return Command::StyleWithArgument;
        }
        "begin" => return Command::Begin,
        "end" => return Command::End,
        _ => return Command::Unknown,
    };
    Command::Word(word)
}

/// Words with one meaning, with a backslash or without.
fn shared_word(name: &str) -> Option<Word> {
    use Func as F;
    Some(match name {
        "sin" => Word::Func(F::Sin),
        "cos" => Word::Func(F::Cos),
        "tan" | "tg" => Word::Func(F::Tan),
        "cot" | "ctg" => Word::Func(F::Cot),
        "sec" => Word::Func(F::Sec),
        "csc" | "cosec" => Word::Func(F::Csc),
        "arcsin" | "asin" => Word::Func(F::Arcsin),
        "arccos" | "acos" => Word::Func(F::Arccos),
        "arctan" | "atan" | "arctg" => Word::Func(F::Arctan),
        "sinh" => Word::Func(F::Sinh),
        "cosh" => Word::Func(F::Cosh),
        "tanh" => Word::Func(F::Tanh),
        "arcsinh" | "asinh" | "arsinh" => Word::Func(F::Arcsinh),
        "arccosh" | "acosh" | "arcosh" => Word::Func(F::Arccosh),
        "arctanh" | "atanh" | "artanh" => Word::Func(F::Arctanh),
        "ln" => Word::Func(F::Ln),
        "lg" => Word::Func(F::Log10),
        "exp" => Word::Func(F::Exp),
        "log" => Word::Log,
        "gcd" => Word::Many(ManyFunc::Gcd),
        "lcm" => Word::Many(ManyFunc::Lcm),
        "max" => Word::Many(ManyFunc::Max),
        "min" => Word::Many(ManyFunc::Min),
        "sgn" | "sign" => Word::Func(F::Sign),
        "sqrt" => Word::Sqrt,
        "pi" => Word::Const(Const::Pi),
        "infty" | "infinity" | "inf" | "oo" => Word::Infinity,
        "choose" => Word::Choose,
        "alpha" => Word::Symbol("α"),
        "beta" => Word::Symbol("β"),
        "gamma" => Word::Symbol("γ"),
        "delta" => Word::Symbol("δ"),
        "epsilon" | "varepsilon" => Word::Symbol("ε"),
        "zeta" => Word::Symbol("ζ"),
        "eta" => Word::Symbol("η"),
        "theta" | "vartheta" => Word::Symbol("θ"),
        "iota" => Word::Symbol("ι"),
        "kappa" => Word::Symbol("κ"),
        "lambda" => Word::Symbol("λ"),
        "mu" => Word::Symbol("μ"),
        "nu" => Word::Symbol("ν"),
        "xi" => Word::Symbol("ξ"),
        "rho" | "varrho" => Word::Symbol("ρ"),
        "sigma" | "varsigma" => Word::Symbol("σ"),
        "tau" => Word::Symbol("τ"),
        "upsilon" => Word::Symbol("υ"),
        "phi" | "varphi" => Word::Symbol("φ"),
        "chi" => Word::Symbol("χ"),
        "psi" => Word::Symbol("ψ"),
        "omega" => Word::Symbol("ω"),
        "Gamma" => Word::Symbol("Γ"),
        "Delta" | "triangle" => Word::Symbol("Δ"),
        "Theta" => Word::Symbol("Θ"),
        "Lambda" => Word::Symbol("Λ"),
        "Xi" => Word::Symbol("Ξ"),
        "Pi" => Word::Symbol("Π"),
        "Sigma" => Word::Symbol("Σ"),
        "Phi" => Word::Symbol("Φ"),
        "Psi" => Word::Symbol("Ψ"),
        "Omega" => Word::Symbol("Ω"),
        "ell" => Word::Symbol("ℓ"),
        "hbar" => Word::Symbol("ħ"),
        "partial" => Word::Symbol("∂"),
        "angle" => Word::Symbol("∠"),
        "nabla" => Word::Symbol("∇"),
        _ => return None,
    })
}

/// The meaning of a word written without a backslash.
pub(crate) fn bare_word(name: &str) -> Option<Word> {
    // These short names are more often products of letters.
    if matches!(name, "nu" | "mu" | "xi" | "eta" | "tg" | "lg" | "sign" | "angle" | "partial" | "triangle" | "ell" | "Pi" | "Xi" | "chi") {
        return None;
    }
    Some(match name {
        "abs" => Word::Func(Func::Abs),
        "floor" => Word::Func(Func::Floor),
        "ceil" => Word::Func(Func::Ceil),
        "conj" => Word::Func(Func::Conj),
        "and" | "And" | "AND" => Word::And,
        "or" | "Or" | "OR" => Word::Or,
        "mod" | "bmod" => Word::Mod,
        "union" => Word::SetOp(SetOp::Union),
        "intersect" => Word::SetOp(SetOp::Intersection),
        "emptyset" => Word::Named(NamedSet::Empty),
        "percent" | "pct" => Word::Percent,
        "Infinity" => Word::Infinity,
        "binom" => Word::Binom,
        _ => return shared_word(name),
    })
}
