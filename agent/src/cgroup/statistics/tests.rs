//! Files as Linux 6.1 and 6.18 wrote them.

use super::*;

#[test]
fn cpu_time_and_throttling() {
    let v2 = "usage_usec 1648650\nuser_usec 1644825\nsystem_usec 3825\nnice_usec 0\nnr_periods 81\n\
              nr_throttled 80\nthrottled_usec 5722393\nnr_bursts 1\nburst_usec 20000\n";
    let v1 = "nr_periods 81\nnr_throttled 80\nthrottled_time 5722393737\nnr_bursts 1\nburst_time 20000000\n";
    let used = CpuUsage {
        user_usec: 1_644_825,
        system_usec: 3825,
        periods: 81,
        throttled_periods: 80,
        throttled_usec: 5_722_393,
    };
    assert_eq!(cpu(v2, v2), used);
    assert_eq!(cpu(v2, v1), used);
    assert_eq!(cpu("usage_usec 5\n", ""), CpuUsage::default());
}

#[test]
fn memory_by_kind() {
    let stat = "anon 1114112\nfile 8192\nkernel 131072\nkernel_stack 16384\nshmem 4096\nfile_mapped 0\n";
    let events = "low 0\nhigh 7\nmax 3\noom 2\noom_kill 1\noom_group_kill 1\n";
    assert_eq!(
        memory_v2(stat, events),
        MemoryUsage {
            anon_bytes: 1_114_112,
            file_bytes: 8192,
            kernel_bytes: 131_072,
            high_events: Some(7),
            max_events: Some(3),
            oom_kills: 1,
            ..MemoryUsage::default()
        }
    );
    let stat = "cache 8192\nrss 1114112\nrss_huge 0\nswap 4096\ntotal_cache 8192\ntotal_rss 1114112\n";
    let oom_control = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
    assert_eq!(
        memory_v1(stat, oom_control),
        MemoryUsage {
            anon_bytes: 1_114_112,
            file_bytes: 8192,
            swap_bytes: Some(4096),
            oom_kills: 1,
            ..MemoryUsage::default()
        }
    );
}

#[test]
fn io_of_the_disk_and_not_of_the_loop_device_on_it() {
    let disk = Device::new(254, 0);
    let used = IoUsage { read_bytes: 4096, write_bytes: 12_288, read_ops: 1, write_ops: 2 };
    let v2 = "7:0 rbytes=1 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n\
              254:0 rbytes=4096 wbytes=12288 rios=1 wios=2 dbytes=0 dios=0\n254:16 \n";
    assert_eq!(io_v2(v2, disk), used);
    let bytes =
        "7:0 Read 1\n254:0 Read 4096\n254:0 Write 12288\n254:0 Sync 0\n254:0 Total 16384\nTotal 16385\n";
    let operations = "254:0 Read 1\n254:0 Write 2\nTotal 3\n";
    assert_eq!(io_v1(bytes, operations, disk), used);
    assert_eq!(io_v2("", disk), IoUsage::default());
    assert_eq!(io_v1("Total 0\n", "Total 0\n", disk), IoUsage::default());
}

#[test]
fn pressure_of_both_kinds() {
    let text = "some avg10=43.40 avg60=9.81 avg300=2.13 total=6385909\n\
                full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n";
    let some = Stall { avg10: 43.4, total_usec: 6_385_909 };
    assert_eq!(pressure(text), Some(Pressure { some, full: Stall { avg10: 0.0, total_usec: 17 } }));
    assert_eq!(pressure("some avg10=x total=1\n"), None);
    assert_eq!(pressure(""), None);
}
