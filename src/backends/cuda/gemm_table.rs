//! `kernels/gemm.tsv`: which algorithm of cublasLt was fastest for a chip, a version, a shape and a number of rows.
//!
//! A row is a first candidate, nothing more: it is admitted by its bits like any other, and ignored by other chips and versions.

use std::fmt;

/// An algorithm as cublasLt keeps it; means nothing to another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(pub [u64; 8]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub n: usize,
    pub k: usize,
    /// Of the bucket: the largest number of rows that it is for.
    pub rows: usize,
    pub bias: bool,
    pub algorithm: Algorithm,
}

pub struct Table(Vec<Row>);

/// How rows name the chip and the version.
pub fn place(arch: &str, version: usize) -> String {
    format!("{arch}\t{version}")
}

impl Table {
    pub fn of(arch: &str, version: usize) -> Self {
        Table::parse(include_str!("../../../kernels/gemm.tsv"), &place(arch, version))
    }

    fn parse(text: &str, place: &str) -> Self {
        let rows = text.lines().filter_map(|line| Row::parse(line.strip_prefix(place)?.strip_prefix('\t')?));
        Table(rows.collect())
    }

    pub fn find(&self, place: &Row) -> Option<Algorithm> {
        self.0.iter().find(|row| Row { algorithm: row.algorithm, ..*place } == **row).map(|row| row.algorithm)
    }
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split('\t');
        let mut number = || columns.next()?.parse::<usize>().ok();
        let (n, k, rows, bias) = (number()?, number()?, number()?, number()? == 1);
        let words: Vec<u64> = columns.next()?.split('.').map(|word| u64::from_str_radix(word, 16).ok()).collect::<Option<_>>()?;
        Some(Row { n, k, rows, bias, algorithm: Algorithm(words.try_into().ok()?) })
    }
}

/// The columns after chip and version.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.algorithm.0.iter().map(|word| format!("{word:x}")).collect();
        write!(f, "{}\t{}\t{}\t{}\t{}", self.n, self.k, self.rows, u8::from(self.bias), words.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_where_they_are_meant_for() {
        let row = Row { n: 2048, k: 11_008, rows: 64, bias: true, algorithm: Algorithm([1, 0, 0xABCD_EF01_2345, 7, 0, 0, u64::MAX, 3]) };
        let text = format!("chip\tversion\tn\tk\trows\tbias\talgorithm\n{}\t{row}\n", place("sm_90a", 130_100));
        let table = Table::parse(&text, &place("sm_90a", 130_100));
        assert_eq!(table.find(&Row { algorithm: Algorithm([0; 8]), ..row }), Some(row.algorithm));
        assert_eq!(table.find(&Row { rows: 128, ..row }), None);
        assert_eq!(table.find(&Row { bias: false, ..row }), None);
        assert!(Table::parse(&text, &place("sm_90a", 13_010)).0.is_empty());
        assert!(Table::parse(&text, &place("sm_80", 130_100)).0.is_empty());
    }

    #[test]
    fn every_row_of_the_table_is_one() {
        let rows = include_str!("../../../kernels/gemm.tsv").lines().skip(1);
        for (i, line) in rows.enumerate() {
            let columns: Vec<&str> = line.splitn(3, '\t').collect();
            assert!(columns.len() == 3 && Row::parse(columns[2]).is_some(), "line {}: {line}", i + 2);
        }
    }
}
