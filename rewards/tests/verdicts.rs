//! Single verdicts of `accuracy` in its best mode, by kind of answer: right ones, wrong ones, and hostile ones.

#![allow(clippy::unwrap_used)]

use rewards::{Reward, Sample, build};
use serde_json::{Map, json};

/// Checks lines of `gold => answer`; the answer is boxed, or the whole completion when it begins with `:: `.
fn check(cases: &str, expect: f64) {
    let reward = build("accuracy", &Map::new()).unwrap();
    let mut failures = Vec::new();
    for line in cases.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (gold, answer) = line.split_once(" => ").unwrap();
        let completion = match answer.strip_prefix(":: ") {
            Some(whole) => whole.replace("\\n", "\n"),
            None => format!("Thus the answer is $\\boxed{{{answer}}}$."),
        };
        let solution = json!(gold);
        let verdict = reward.score(&Sample { completion: &completion, solution: Some(&solution), ..Sample::default() });
        if verdict.value != Some(expect) {
            failures.push(format!("{line}   got {:?} {} {:?}", verdict.value, verdict.reason, verdict.extracted));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn equal_numbers() {
    check(
        r#"
        $\frac{3}{4}$ => 0.75
        $\frac{3}{4}$ => 75\%
        $0.5$ => \dfrac{1}{2}
        $\frac{17}{5}$ => 3\frac{2}{5}
        $3\frac{2}{5}$ => 3.4
        $-\frac{7}{2}$ => -3\tfrac{1}{2}
        7/2 => 3 1/2
        $1000000$ => 10^6
        $1000000$ => 1,000,000
        $12345$ => 12\,345
        $6.02\times 10^{23}$ => 602000000000000000000000
        $0.00012$ => 1.2e-4
        $0.00012$ => 1.2 \times 10^{-4}
        $2\sqrt{3}$ => \sqrt{12}
        $\frac{\sqrt{2}}{2}$ => \frac{1}{\sqrt{2}}
        $\sqrt{7+4\sqrt{3}}$ => 2+\sqrt{3}
        $\sqrt[3]{16}$ => 2\sqrt[3]{2}
        $\frac{\pi}{6}$ => \arcsin(0.5)
        $\frac{\pi}{6}$ => \sin^{-1}\frac{1}{2}
        $2$ => \log_3 9
        $\ln 3$ => \frac{1}{2}\ln 9
        $\frac{1}{7}$ => 0.\overline{142857}
        $\frac{1}{3}$ => 0.\dot{3}
        $120$ => 5!
        $10$ => \binom{5}{3}
        $10$ => {5 \choose 2}
        $8$ => 2^3
        $8$ => 2**3
        $\frac{1}{2}$ => 1 / 2
        $\sqrt{5}$ => 5^{0.5}
        $\sqrt{5}$ => sqrt(5)
        $4$ => \lfloor 4.7 \rfloor
        $3$ => |{-3}|
        $\frac{n}{2}$ => 0.5n
        $1+i$ => i+1
        $-i$ => \frac{1}{i}
        $2e$ => 2 \cdot e
        $5050$ => \sum_{k=1}^{100} k
        $6$ => 1+2+3
        $x$ => \mathbf{x}
        $17$ => \text{seventeen}
        $17$ => {17}
        $\frac{7}{12}$ => \frac{1}{3}+\frac{1}{4}
        $e^{-1}$ => \frac1e
        $9$ => 3\times3
        $-2$ => \sqrt[3]{-8}
        $10\pi$ => 10π
        $\frac{4\pi}{3}$ => \frac{4}{3}π
        $0$ => \sin(\pi)
        "#,
        1.0,
    );
}

#[test]
fn different_numbers() {
    check(
        r#"
        $\frac{3}{4}$ => 0.7
        $\frac{1}{3}$ => 0.33
        $12$ => 12.1
        $1000$ => 10^4
        $2\sqrt{3}$ => 3\sqrt{2}
        $\pi$ => \frac{22}{7}
        $5$ => -5
        $5$ => 5x
        $5$ => 5!
        $5$ => 5 \text{ or } 6
        $5$ => 5, 6
        $5$ => \{5, 6\}
        $5$ => (5, 6)
        $5$ => x > 5
        $5$ => x \ne 5
        $5$ => \pm 5
        $5$ => \infty
        $0$ => 10^{-30}
        $0$ => \emptyset
        $1$ => 0.999999
        $2^{100}$ => 2^{100}+1
        $12$ => 1 2
        $6$ => 3 3
        $3$ => \frac{9}{0}
        $e$ => 2.71
        $\sqrt{2}$ => 1.41
        $\frac{2}{3}$ => \frac{3}{2}
        $23$ => \frac{2}{3}
        $262537412640768744$ => e^{\pi\sqrt{163}}
        $7$ => \text{not } 7
        $7$ => \text{between } 7 \text{ and } 9
        $4$ => \sqrt{4}\sqrt{2}
        "#,
        0.0,
    );
}

#[test]
fn expressions() {
    check(
        r#"
        $x^2+2x+1$ => (x+1)^2
        $(x-2)(x+3)$ => x^2+x-6
        $\frac{x^2-9}{x+3}$ => x-3
        $\frac{1}{x-1}-\frac{1}{x+1}$ => \frac{2}{x^2-1}
        $2^{n+2}$ => 4\cdot 2^n
        $3^{2n}$ => 9^n
        $\frac{n(n-1)}{2}$ => \binom{n}{2}
        $\tan x$ => \frac{\sin x}{\cos x}
        $\cos 2x$ => \cos^2 x - \sin^2 x
        $\sec^2 x$ => 1+\tan^2 x
        $\ln(ab)$ => \ln(ba)
        $a^2-b^2$ => (a+b)(a-b)
        $\sqrt{x}$ => x^{1/2}
        $x\sqrt{x}$ => x^{3/2}
        $e^{x+y}$ => e^x e^y
        $\frac{a+b}{c}$ => \frac{a}{c}+\frac{b}{c}
        $2xy$ => 2yx
        $2xy$ => 2*x*y
        $\alpha^2\beta$ => \beta\alpha^2
        $\frac{dy}{dx}$ => \frac{dy}{dx}
        $(n+1)!$ => (n+1)n!
        $\frac{x^4}{4}+C$ => C+\frac{1}{4}x^4
        $a_n$ => a_{n}
        $x_1x_2$ => x_2 x_1
        $|x-y|$ => |y-x|
        $\sinh x$ => \frac{e^x-e^{-x}}{2}
        $\pi r^2 h$ => \pi h r^2
        $2n-1$ => 2(n-1)+1
        $f(x)=2x+1$ => 2x+1
        $2x+1$ => y=2x+1
        $\lim_{n\to\infty}\left(1+\frac{1}{n}\right)^n$ => e
        $\int_0^{\pi} \sin x \, dx$ => 2
        $\frac{d}{dx}x^3$ => 3x^2
        $\sum_{k=0}^{\infty}\frac{1}{3^k}$ => \frac{3}{2}
        $\sum_{k=1}^{n} k$ => \frac{n(n+1)}{2}
        "#,
        1.0,
    );
    check(
        r#"
        $x^2+2x+1$ => (x-1)^2
        $x^2$ => y^2
        $2x$ => x^2
        $\sqrt{x^2+1}$ => x+1
        $\sqrt{x^2}$ => x
        $|x|$ => x
        $\ln(a+b)$ => \ln a+\ln b
        $\sin 2x$ => 2\sin x
        $e^{x^2}$ => (e^x)^2
        $a_{n+1}$ => a_n+1
        $a_1$ => a_2
        $x'$ => x
        $f(x)$ => g(x)
        $f(2)$ => 2
        $2x+1$ => 2x-1
        $\frac{1}{x+y}$ => \frac{1}{x}+\frac{1}{y}
        $n!$ => (n-1)!
        $2^n$ => 2n
        $\gamma$ => \Gamma
        $x+C$ => x
        "#,
        0.0,
    );
}

#[test]
fn equations_and_inequalities() {
    check(
        r#"
        $x=5$ => 5
        $5$ => x=5
        $x=5$ => 5=x
        $y=2x-3$ => 2x-y-3=0
        $2x-y=3$ => y=2x-3
        $x^2+y^2=25$ => \frac{x^2}{25}+\frac{y^2}{25}=1
        $x=2, y=3$ => y=3, x=2
        $(x,y)=(2,3)$ => x=2, y=3
        $x=2$ or $x=-3$ => x=-3, 2
        $x^2=9$ => x=\pm3
        $x>3$ => 3<x
        $x>3$ => (3,\infty)
        $(3,\infty)$ => x>3
        $x\ge 3$ => [3,\infty)
        $-1<x\le 4$ => (-1,4]
        $-1<x\le 4$ => x>-1 \text{ and } x\le 4
        $|x|<2$ => -2<x<2
        $x^2\le 9$ => [-3,3]
        $x<0$ or $x>5$ => (-\infty,0)\cup(5,\infty)
        $x\ne 0$ => (-\infty,0)\cup(0,\infty)
        $2x>6$ => x>3
        $-x<4$ => x>-4
        $|x-3|<2$ => (1,5)
        $a<b$ => b>a
        $x+y\le 4$ => y\le 4-x
        $x \equiv 2 \pmod{5}$ => x\equiv 7\pmod 5
        $\mathbb{R}$ => \text{all real numbers}
        $y=\frac{1}{2}x$ => x=2y
        $f(x)=x^2$ => f(t)=t^2
        $x=\frac{3\pm\sqrt{5}}{2}$ => \frac{3+\sqrt{5}}{2}, \frac{3-\sqrt{5}}{2}
        $\{x \mid x \ge 1\}$ => [1, \infty)
        $[0,2)\cup(2,\infty)$ => x\ge 0 \text{ and } x\neq 2
        "#,
        1.0,
    );
    check(
        r#"
        $x=5$ => x=6
        $x=5$ => y=5
        $y=2x-3$ => y=2x+3
        $x>3$ => x\ge 3
        $x>3$ => x<3
        $x>3$ => 3
        $x>3$ => x=3
        $[1,2]$ => (1,2)
        $(1,2]$ => [1,2)
        $x^2=9$ => x=3
        $x=3$ => x^2=9
        $x=2$ or $x=-3$ => x=2
        $(x,y)=(2,3)$ => (3,2)
        $xy=0$ => x=0
        $x<0$ or $x>5$ => (0,5)
        $(0,1)\cup(1,2)$ => (0,2)
        $x>100\sqrt{2}$ => x\ge 100\sqrt{2}
        $3$ => 7=3
        $a>b$ => b>a
        $f(x)=x^2$ => g(x)=x^2
        $x \equiv 2 \pmod{5}$ => x\equiv 3\pmod 5
        "#,
        0.0,
    );
}

#[test]
fn collections() {
    check(
        r#"
        $\{1,2,3\}$ => \{3,2,1\}
        $\{1,2,3\}$ => 1, 2, 3
        $1,2,3$ => 3,1,2
        $2$ and $3$ => 3, 2
        $\{1,2\}$ => \{1,2,2,1\}
        $\{-2,2\}$ => \pm 2
        $\emptyset$ => \varnothing
        $(1,2)$ => (1, 2)
        $(\frac{1}{2},3)$ => (0.5, 3)
        $(1,2,3)$ => \left( 1, 2, 3 \right)
        $(1,2),(3,4)$ => (3,4),(1,2)
        $\begin{pmatrix}1&2\\3&4\end{pmatrix}$ => \begin{bmatrix}1&2\\3&4\end{bmatrix}
        $\begin{pmatrix}1&2\\3&4\end{pmatrix}$ => [[1,2],[3,4]]
        $\begin{pmatrix}2\\4\end{pmatrix}$ => 2\begin{pmatrix}1\\2\end{pmatrix}
        $\begin{pmatrix}0.5\\1\end{pmatrix}$ => \begin{pmatrix}\frac12\\1\end{pmatrix}
        $\{1,2,\ldots,6\}$ => \{1,2,3,4,5,6\}
        $3:4$ => 3 : 4
        $\{2,\sqrt{3}\}$ => \{\sqrt{3}, 2\}
        $\{1\}\cup\{2\}$ => \{1,2\}
        $-2$ => \begin{vmatrix}1&2\\3&4\end{vmatrix}
        $100, 200, 300$ => 100,200,300
        "#,
        1.0,
    );
    check(
        r#"
        $\{1,2,3\}$ => \{1,2\}
        $\{1,2\}$ => \{1,2,3\}
        $1,2$ => 12
        $(1,2)$ => (2,1)
        $(1,2,3)$ => (1,2)
        $\begin{pmatrix}1&2\\3&4\end{pmatrix}$ => \begin{pmatrix}1&3\\2&4\end{pmatrix}
        $\begin{pmatrix}1\\2\end{pmatrix}$ => \begin{pmatrix}1&2\end{pmatrix}
        $\emptyset$ => 0
        $\emptyset$ => \{0\}
        $3:4$ => 4:3
        $\mathbb{Z}$ => \mathbb{R}
        $1\pm\sqrt{2}$ => 1+\sqrt{2}
        "#,
        0.0,
    );
}

#[test]
fn words_units_and_choices() {
    check(
        r#"
        $\text{Monday}$ => \text{monday}
        Monday => \text{Monday}
        $\text{even}$ => \text{Even.}
        $\text{no solution}$ => \text{No solution}
        $\text{isosceles}$ => isosceles
        $5 \text{ cm}$ => 5
        $5$ => 5\text{ cm}
        $5 \text{ cm}$ => 50 \text{ mm}
        $2 \text{ m}$ => 200\text{ cm}
        $90$ => 90^\circ
        $60^\circ$ => \frac{\pi}{3}
        $\$20$ => 20
        20 dollars => \$20
        $36\text{ km/h}$ => 10 \text{ m/s}
        $12 \text{ cm}^2$ => 12 \text{ square centimeters}
        $1.5 \text{ hours}$ => 90 \text{ minutes}
        $\text{1 hour and 30 minutes}$ => \text{90 minutes}
        $15$ => 15 \text{ apples}
        $15$ => 15 apples
        B => \text{B}
        B => (B)
        $\text{(B)}$ => B
        $\textbf{(C)}\ 12$ => C
        D => \text{D. All of the above}
        A => :: The correct answer is option A.
        C => :: **Answer: (C)**
        $2:15 \text{ PM}$ => 14:15
        $\text{June 12}$ => \text{12 June}
        $42$ => 四十二
        "#,
        1.0,
    );
    check(
        r#"
        $\text{Monday}$ => \text{Tuesday}
        $\text{yes}$ => \text{no}
        $\text{not}$ => \text{ton}
        $\text{Alice}$ => \text{not Alice}
        $5 \text{ cm}$ => 5 \text{ m}
        $5 \text{ cm}$ => 6 \text{ cm}
        $12 \text{ cm}^2$ => 12 \text{ cm}
        $\$20$ => 20 \text{ cents}
        $90$ => 91^\circ
        B => C
        B => B, C
        B => B \text{ or } C
        $2a+3m$ => 2a+3s
        "#,
        0.0,
    );
}

#[test]
fn extraction() {
    check(
        r#"
        42 => :: The answer is 42.
        42 => :: <think>hm \boxed{41}</think>The answer is 42.
        42 => :: <think>hm</think><answer>42</answer>
        42 => :: #### 42
        42 => :: So we get 42
        42 => :: Therefore **42**.
        42 => :: \boxed{41} was wrong. It is \boxed{42}.
        42 => :: $$\boxed{42}$$<|im_end|>
        42 => :: Final Answer: The final answer is $42$. I hope it is correct.
        42 => :: The final answer is:\n\n$$42$$
        42 => :: ### Answer\n42
        42 => :: ### Answer\n\n**42**
        42 => :: {"answer": 42}
        42 => :: I put my answer in \boxed{42}. The format \boxed{answer} was asked for.
        $\frac{1}{2}$ => :: The answer is \frac{1}{2}.
        $\frac{1}{2}$ => :: We obtain \[\frac{1}{2}.\]
        $\frac{1}{2}$ => :: Hence $x = \frac{1}{2}$.
        $x+1$ => :: The result is $x+1$.
        42 => :: 答案是 42。
        42 => :: 所以最终答案为：$42$。
        1234 => :: In total there are 1,234 of them.
        18 => :: She makes $18 every day.
        18 => :: The answer is $18.
        18 => :: The answer is $\$18$.
        #### 18 => :: The answer is 18 dollars.
        $5,7$ => :: The primes are $\boxed{5}$ and $\boxed{7}$.
        42 => :: \boxed{42
        42 => :: \fbox{42}
        42 => :: <answer>The answer is 42</answer>
        42 => :: <answer>6 * 7 = 42</answer>
        42 => :: Answer: 42
        42 => :: **Final Answer:** 42
        42 => :: The answer to the question is 42.
        -3 => :: We get x = -3
        50% => :: The answer is 50%.
        yes => :: The answer is yes.
        Paris => :: Answer: Paris
        "#,
        1.0,
    );
    check(
        r#"
        42 => :: The answer is 43.
        42 => :: <think>\boxed{42}</think>The answer is 43.
        42 => :: \boxed{42} was wrong. It is \boxed{43}.
        42 => :: I cannot solve this. There were 42 of them.
        42 => :: \boxed{}
        42 => :: \boxed{answer}
        42 => :: $\boxed{42}$ or $\boxed{43}$.
        42 => :: \boxed{40} \boxed{41} \boxed{43} \boxed{44} \boxed{45} \boxed{46} \boxed{47} \boxed{48} \boxed{49} \boxed{42}
        "#,
        0.0,
    );
}

/// Builds an answer of nesting that a recursive reader would not survive.
fn nested(open: &str, inside: &str, close: &str, n: usize) -> String {
    open.repeat(n) + inside + &close.repeat(n)
}

#[test]
fn hostile_answers_return_in_time() {
    let reward = build("accuracy", &Map::new()).unwrap();
    let trl = build("accuracy", json!({"mode": "trl"}).as_object().unwrap()).unwrap();
    let answers = [
        nested("\\frac{1}{", "x", "}", 20_000),
        nested("(", "x", ")", 50_000),
        nested("[", "x", "]", 50_000),
        nested("{", "x", "}", 50_000),
        nested("\\{", "x", "\\}", 20_000),
        nested("\\sqrt{", "x", "}", 20_000),
        nested("|", "x", "|", 20_000),
        nested("\\left\\lfloor ", "x", "\\right\\rfloor", 20_000),
        nested("x^{", "x", "}", 20_000),
        nested("\\sin ", "x", "", 20_000),
        nested("\\log_", "x", "", 20_000),
        nested("-", "x", "", 50_000),
        nested("", "x", "!", 50_000),
        nested("\\text{", "x", "}", 20_000),
        nested("\\begin{cases}", "x", "\\end{cases}", 5_000),
        nested("\\begin{matrix}", "x", "\\end{matrix}", 5_000),
        nested("\\frac", "", "", 50_000),
        nested("\\binom", "", "", 50_000),
        nested("\\sum_{k=1}^{9}", "k", "", 300),
        nested("\\int_0^1 ", "x", " dx", 300),
        nested("\\lim_{x\\to 0} ", "x", "", 300),
        nested("\\frac{d}{dx} ", "x", "", 300),
        nested("\\boxed{", "x", "", 20_000),
        nested("x_{", "1", "}", 20_000),
        nested("f(", "x", ")", 20_000),
        nested("1,", "1", "", 100_000),
        nested("x=", "x", "", 50_000),
        nested("1\\pm ", "1", "", 10_000),
        "9".repeat(1_000_000),
        "9!".repeat(10_000),
        format!("\\{{{}\\}}", (0..5000).map(|i| format!("x_{{{i}}}")).collect::<Vec<_>>().join(",")),
        "9^9^9^9^9^9".to_owned(),
        "(10^{10})!".to_owned(),
        "\\binom{10^9}{10^8}".to_owned(),
        "\\prod_{k=1}^{10000} k^k".to_owned(),
        "1e999999".to_owned(),
        "\\sum_{i=1}^{100}\\sum_{j=1}^{100}\\sum_{k=1}^{100} ijk".to_owned(),
        "\\int_0^1 \\int_0^1 \\int_0^1 x dx dx dx".to_owned(),
        format!("\\begin{{vmatrix}}{}\\end{{vmatrix}}", "1&2&3&4&5\\\\".repeat(5)),
    ];
    // A thread of the size that servers give theirs.
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let timed = |reward: &dyn Reward, gold: &str, completion: &str| {
            let gold = json!(gold);
            let start = std::time::Instant::now();
            let verdict = reward.score(&Sample { completion, solution: Some(&gold), ..Sample::default() });
            let took = start.elapsed();
            let shown: String = completion.chars().take(60).collect();
            assert_ne!(verdict.reason, rewards::Reason::Internal, "{shown}");
            if std::env::var("SHOW").is_ok() && took.as_millis() > 4 {
                println!("{took:?} {gold} {shown}");
            }
            // The wall is far from the budget, for machines that do other things as well.
            assert!(took.as_millis() < 1000, "{shown} took {took:?}");
        };
        for answer in &answers {
            for completion in [format!("\\boxed{{{answer}}}"), answer.clone(), format!("The answer is ${answer}$")] {
                for reward in [&reward, &trl] {
                    for gold in ["$5$", "$\\{x+1,2\\}$", "$x>2$"] {
                        timed(reward.as_ref(), gold, &completion);
                    }
                    timed(reward.as_ref(), &completion, "\\boxed{x+1}");
                }
            }
        }
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn more_forms() {
    check(
        r#"
        $\frac{5}{8}$ => {5 \over 8}
        $\frac{5}{8}$ => \frac58
        $\frac{5}{8}$ => \left(\frac{5}{8}\right)
        $\frac{5}{8}$ => 0.625
        $\frac{5}{8}$ => \displaystyle\frac{5}{8}
        $\frac{5}{8}$ => \color{blue}{\frac{5}{8}}
        $\frac{5}{8}$ => \text{The answer is } \frac{5}{8}
        $\frac{5}{8}$ => x = \frac{5}{8}
        $\frac{5}{8}$ => \frac{10}{16}
        $\frac{5}{8}$ => "5/8"
        $\frac{5}{8}$ => 5⁄8
        $\frac{5}{8}$ => ⅝
        $\frac{5}{8}$ => 62.5\%
        $\frac{5}{8}$ => 5 \div 8
        $-5$ => −5
        $-5$ => – 5
        $1500$ => 1{,}500
        $1500$ => 1\ 500
        $1500$ => 1,500.00
        $2.5$ => 2½
        $x^3$ => x³
        $x_2$ => x₂
        $\sqrt{17}$ => √17
        $3\le x<5$ => [3,5)
        $3\le x<5$ => 3≤x<5
        $\theta$ => θ
        $\frac{2\pi}{3}$ => 120^\circ
        $120^\circ$ => \frac{2\pi}{3}
        $\cos 60^\circ$ => \frac12
        $\sin^2\theta$ => 1-\cos^2\theta
        $a^{-1}$ => \frac{1}{a}
        $(2,\infty)$ => (2, +\infty)
        $(-\infty,2]\cup[5,\infty)$ => x \le 2 \text{ or } x \ge 5
        $\mathbb{R}\setminus\{2\}$ => x \neq 2
        $\mathbb{R}\setminus\{2\}$ => (-\infty,2)\cup(2,\infty)
        $n=7$ => 7
        $\angle ABC = 40^\circ$ => 40^\circ
        $40$ => \angle A = 40^\circ
        $AB = 5$ => 5
        $\overline{AB}=5$ => 5
        $12$ => 12\text{ square units}
        $12\pi$ => 12\pi\text{ cm}^3
        $12\pi$ => 12 \pi \text{ cubic inches}
        $12$ => 12\text{ ways}
        $0.2$ => 20\%
        $20\%$ => \frac15
        $7$ => \text{7 days}
        $48$ => \$48
        $48$ => 48 \text{ dollars}
        $48.00$ => 48
        $3$ => 3.
        $3$ => = 3
        $3$ => 3 \quad
        $3$ => \, 3
        $11_2$ => 11_{2}
        $ABC_{16}$ => ABC_{16}
        $5$ => \sqrt{25}
        $5$ => \frac{10}{2}
        $5$ => 3+2
        $5$ => x=2+3=5
        $14$ => 2 \cdot 7 = 14
        $\frac{3}{2}$ => \log_4 8
        $2^{10}$ => 1024
        $7$ => 100 \bmod 31
        $4$ => \gcd(12, 20)
        $60$ => \text{lcm}(12, 20)
        $5$ => \max\{3,5\}
        $(1,-2)$ => x=1, y=-2
        $x=1, y=-2$ => (1,-2)
        $(a,b,c)=(1,2,3)$ => (1,2,3)
        $(4,-1)$ => \left(4,\,-1\right)
        $\left(\frac{3}{2},-\frac{1}{2}\right)$ => (1.5,-0.5)
        $\langle 1,2\rangle$ => \langle 1, 2 \rangle
        $1,-1,i,-i$ => \{\pm 1, \pm i\}
        $\pm\sqrt{2}$ => \{-\sqrt{2},\sqrt{2}\}
        $-1,3$ => x=-1 \text{ or } x=3
        $x=-1,3$ => -1 \text{ and } 3
        $\text{Sarah}$ => \textbf{Sarah}
        $\text{Sarah}$ => Sarah
        $\text{odd}$ => \mathrm{odd}
        True => \text{true}
        neither => \text{Neither}
        $\text{SSA}$ => \text{SSA}
        $y=x^2$ => x^2
        $y = 3x+2$ => y-2=3x
        $x^2+y^2=4$ => x^2+y^2-4=0
        $\frac{x}{2}+\frac{y}{3}=1$ => 3x+2y=6
        $y=\frac{2}{x}$ => xy=2
        $3x+2$ => f(x) = 3x+2
        $i$ => \sqrt{-1}
        $2-3i$ => -3i+2
        $\frac{1}{2}-\frac{i}{2}$ => \frac{1}{1+i}
        $e^{i\pi/4}$ => \frac{\sqrt{2}}{2}+\frac{\sqrt{2}}{2}i
        $\frac{1}{\sqrt{3}+\sqrt{2}}$ => \sqrt{3}-\sqrt{2}
        $3^{1/3}$ => \sqrt[3]{3}
        $\ln\frac{3}{2}$ => \ln 3-\ln 2
        $\log_2 3$ => \frac{\log 3}{\log 2}
        $\tan^{-1} 1$ => \frac{\pi}{4}
        $\binom{8}{3}$ => 56
        $P(A)=\frac13$ => \frac13
        $\frac{1}{3}$ => P = \frac{1}{3}
        $F_n$ => F_{n}
        $2\times 3\times 7$ => 42
        $2^3\cdot 5$ => 40
        $O(n\log n)$ => O(n \log n)
        $5000000$ => 5 \text{ million}
        $(-1)^n$ => (-1)^{n+2}
        $\{2k : k\in\mathbb{Z}\}$ => \{2n : n\in\mathbb{Z}\}
        $(2,\infty)$ => k>2
        $5000000$ => \$5 \text{ million}
        $60$ => 5 \text{ dozen}
        $28\%$ => 28
        $1.2\times 10^9$ => 1.2 billion
        "#,
        1.0,
    );
    check(
        r#"
        $\frac{5}{8}$ => \frac{8}{5}
        $\frac{5}{8}$ => 0.62
        $\frac{5}{8}$ => 5.8
        $1500$ => 15,00
        $1500$ => 1.5
        $\sqrt{17}$ => 17
        $\sqrt{17}$ => \sqrt{1}7
        $120^\circ$ => \frac{\pi}{3}
        $2-3i$ => 2+3i
        $2-3i$ => 2
        $(1,-2)$ => x=-2, y=1
        $-1,3$ => 3
        $-1,3$ => -1,3,5
        $3$ => -1,3
        $\mathbb{R}\setminus\{2\}$ => \mathbb{R}
        $(2,\infty)$ => [2,\infty)
        $\text{odd}$ => \text{even}
        $y=x^2$ => y=x^2+1
        $y=x^2$ => x=y^2
        $AB = 5$ => 6
        $\binom{8}{3}$ => \binom{8}{4}
        $12\pi$ => 12
        $12$ => 12\pi
        $x>2$ => x>2.5
        $11_2$ => 11_3
        $P(A)=\frac13$ => \frac23
        $\{1,2\}$ => (1,2),(2,1)
        $5$ => \log_a 5
        $5$ => 5 = 6
        $6$ => 5 = 6
        $3x+2$ => 3x+2=0
        $5$ => 5 \text{ dozen}
        $0.28$ => 0.28\%
        $5\%$ => \text{5 June}
        $(-1)^n$ => 1
        $(-1)^{n}$ => -1
        $(-1)^{m+n}$ => 1
        $(-1)^n$ => (-1)^{n+1}
        $x>2$ => k>2
        $\mathbb{Z}$ => \{2\pi n : n\in\mathbb{Z}\}
        $\sinh 0$ => \frac{1}{2^{2006}}
        $\sin\pi$ => 10^{-40}
        1,000 => (1,0)
        $1,000$ => 1, 0
        $5$ => 5 \text{ million}
        "#,
        0.0,
    );
}
