# frozen_string_literal: true

module RubyBuild
  # Ends the build; the message is the reason in one line, in words the developer can act on.
  class Failure < StandardError
    DISK_FULL = "disk full: the build used up the space it may use"
  end

  # The build log: a heading per step, how long it took, and one last line that sums up.
  class Log
    def initialize
      $stdout.sync = true
      @started = now
      @timings = []
    end

    def step(title)
      puts "-----> #{title}"
      started = now
      yield
      @timings << format("%s %.1f s", title.split.last, now - started)
      puts format("       done in %.1f s", now - started)
    end

    def finish(bytes)
      puts format("mogok-build: done in %.1f s (%s), package %.1f MB", now - @started, @timings.join(", "), bytes / 1e6)
    end

    def fail(reason)
      $stderr.flush
      puts "mogok-build: failed: #{reason.gsub(/[[:cntrl:]]+/, " ").strip[0, 300]}"
      exit 1
    end

    private

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
