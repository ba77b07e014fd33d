# frozen_string_literal: true

module RubyBuild
  # Runs a program with its output in the build log, and keeps the end of the output so that a
  # failure can be explained.
  class Command
    DISK_FULL = /No space left on device|insufficient space remaining|Disk quota exceeded|Errno::ENOSPC/
    KEPT_LINES = 500
    LINE_BYTES = 10_000
    LAST_WORDS_POLLS = 100 # of 20 ms

    # What both bundle and rake need. The bundle's own settings stand in .bundle/config.
    ENVIRONMENT = {
      "BUNDLE_MIRROR__ALL" => ENV["BUNDLE_MIRROR__ALL"],
      "HOME" => "/tmp",
      "LANG" => "C.UTF-8",
      "PATH" => "/usr/local/bin:/usr/bin:/bin",
      "MOGOK_BUILD" => "1",
      "RACK_ENV" => "production",
      "RAILS_ENV" => "production",
      "NODE_ENV" => "production"
    }.compact.freeze

    Result = Struct.new(:status, :lines) do
      def ok? = status.success?
      def signal = status.signaled? ? Signal.signame(status.termsig) : nil
      def killed? = signal == "KILL"

      # The first match in a line, or else in the whole: Bundler wraps its messages at 80 columns.
      def find(pattern)
        lines.each { |line| (match = pattern.match(line)) and return match }
        pattern.match(whole)
      end

      def whole = @whole ||= lines.join(" ").squeeze(" ")
    end

    # `hidden` matches the lines that are not worth a place in the build log.
    def self.run(*command, dir:, env: {}, hidden: nil)
      lines = []
      reader, writer = IO.pipe
      options = { unsetenv_others: true, chdir: dir, in: File::NULL, %i[out err] => writer, pgroup: true }
      pid = Process.spawn(ENVIRONMENT.merge(env), *command, options)
      writer.close
      waiter = Thread.new { wait(pid, reader) }
      while (line = next_line(reader))
        puts "       #{line}" unless hidden&.match?(line.scrub("?"))
        lines << line.scrub("?").chomp
        lines.shift if lines.size > KEPT_LINES
      end
      Result.new(waiter.value, lines)
    rescue Errno::ENOENT
      raise Failure, "#{command.first} is not there to be run"
    end

    # Waits for the program. What it left behind is killed, and where that still holds the output
    # open (a process group of its own), the reading ends all the same.
    def self.wait(pid, reader)
      _, status = Process.wait2(pid)
      begin
        Process.kill(:KILL, -pid)
      rescue Errno::ESRCH
        # Nothing was left behind.
      end
      LAST_WORDS_POLLS.times { reader.closed? ? break : sleep(0.02) }
      reader.close
      status
    end
    private_class_method :wait

    def self.next_line(reader)
      line = reader.gets("\n", LINE_BYTES)
      reader.close unless line
      line
    rescue IOError
      # Closed by the waiting thread.
      nil
    end
    private_class_method :next_line

    # Failures that any step can meet.
    def self.common_reason(result, what)
      if result.find(DISK_FULL)
        Failure::DISK_FULL
      elsif result.killed? || result.find(/Cannot allocate memory|NoMemoryError|Killed signal terminated program/)
        "#{what} was killed: it needs more memory than a build may use"
      elsif result.signal == "XFSZ"
        "#{what} was killed: it wrote a file larger than a build may write"
      elsif result.signal
        "#{what} was killed by SIG#{result.signal}"
      end
    end
  end
end
