//! Checked products: wrong ones are found, right ones are not.

use llamero_cpu::Cpu;
use llamero_tensor::testing::{random, splitmix, suite};
use llamero_tensor::{Backend, CheckedProducts, DType, Shape, Tensor};

/// Every product of the given sizes.
fn products(device: &dyn Backend, (t, n, k): (usize, usize, usize), dtype: DType, seed: u64) {
    let tensor = |seed, rows, cols, dtype| {
        device.upload(&random(seed, rows * cols, 1.0), Shape::new(rows, cols), dtype)
    };
    let (x, w, dy) =
        (tensor(seed, t, k, dtype), tensor(seed + 1, n, k, dtype), tensor(seed + 2, t, n, dtype));
    device.linear(&x, &w);
    device.linear_backward_input(&dy, &w);
    let mut dw = tensor(seed + 3, n, k, DType::F32);
    device.linear_backward_weight(&dy, &x, &mut dw);
    device.linear_backward_weight(&dy, &x, &mut dw);
}

#[test]
fn right_products_pass() {
    let cpu = Cpu::new(2).unwrap();
    let device = CheckedProducts::new(&cpu, 1);
    for dtype in [DType::F32, DType::Bf16] {
        for seed in 0..40 {
            for sizes in [(1, 1, 1), (3, 7, 5), (96, 33, 130), (64, 257, 1030)] {
                products(&device, sizes, dtype, 10 * seed);
            }
        }
        // Equal values round alike, which random signs undo.
        let ones = |rows, cols| device.upload(&vec![0.3; rows * cols], Shape::new(rows, cols), dtype);
        device.linear(&ones(40, 300), &ones(500, 300));
        // What comes from the inputs is no fault.
        let nan = device.upload(&[f32::NAN; 6], Shape::new(2, 3), dtype);
        device.linear(&nan, &ones(4, 3));
    }
    assert_eq!(device.take_faults(), [""; 0]);
}

/// Bits of one element that change it by more than half of the largest of its row, found in all products.
#[test]
fn wrong_products_are_found() {
    let cpu = Cpu::new(2).unwrap();
    let device = CheckedProducts::new(&cpu, 1);
    let (mut seed, mut found, mut missed) = (7, 0, 0);
    for round in 0..200 {
        let dtype = if round % 2 == 0 { DType::F32 } else { DType::Bf16 };
        let (t, n, k) = (48, 96, 64);
        let tensor =
            |seed, rows, cols| device.upload(&random(seed, rows * cols, 1.0), Shape::new(rows, cols), dtype);
        let (x, w, dy) = (tensor(round, t, k), tensor(round + 1, n, k), tensor(round + 2, t, n));
        let right: Tensor;
        let wrong: Tensor;
        let zeros = || device.zeros(Shape::new(n, k), DType::F32);
        match round % 3 {
            0 => {
                right = cpu.linear(&x, &w);
                device.damage_next(splitmix(&mut seed));
                wrong = device.linear(&x, &w);
            }
            1 => {
                right = cpu.linear_backward_input(&dy, &w);
                device.damage_next(splitmix(&mut seed));
                wrong = device.linear_backward_input(&dy, &w);
            }
            _ => {
                let (mut a, mut b) = (zeros(), zeros());
                cpu.linear_backward_weight(&dy, &x, &mut a);
                device.damage_next(splitmix(&mut seed));
                device.linear_backward_weight(&dy, &x, &mut b);
                (right, wrong) = (a, b);
            }
        }
        let (a, b) = (cpu.download(&right), cpu.download(&wrong));
        let at = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()).unwrap();
        let row = &a[at / right.cols() * right.cols()..][..right.cols()];
        let largest = row.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = (a[at] - b[at]).abs();
        let faults = device.take_faults();
        if off.is_nan() || off > largest / 2.0 {
            assert!(!faults.is_empty(), "{dtype}: {} became {} and nobody saw it", a[at], b[at]);
        }
        if faults.is_empty() { missed += 1 } else { found += 1 }
    }
    // Bits below rounding cannot be seen; a good part of the others must have been drawn.
    assert!(found > 20, "{found} found, {missed} too small to be seen");
    println!("{found} of 200 bits found, {missed} below half of the largest of their row");
}

/// The device with checks is the device: the whole op suite passes, without a false alarm.
#[test]
fn a_checked_device_passes_the_op_suite() {
    let cpu = Cpu::new(2).unwrap();
    let device = CheckedProducts::new(&cpu, 1);
    for (name, group) in suite::GROUPS {
        group(&device);
        let faults = device.take_faults();
        assert!(faults.is_empty(), "{name}: {faults:?}");
    }
}
