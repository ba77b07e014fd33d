# frozen_string_literal: true

require "fileutils"

module RubyBuild
  # The package: /app as tar.zst. The same tree gives the same bytes.
  class Package
    # Where the first entry of a tar keeps its time, in octal digits (tar(5)).
    MTIME_OFFSET = 136
    MTIME_DIGITS = 11
    BYTES_MAX = 500_000_000

    attr_reader :bytes

    def initialize(app, source, output)
      @app = app
      @source = source
      @output = output
    end

    def write(stamp)
      stamp.write(@app)
      drop_unpackable
      pack
      @bytes = File.size(@output)
      return if @bytes <= BYTES_MAX

      raise Failure, format("the package has %d MB, the limit is %d MB", @bytes / 1_000_000, BYTES_MAX / 1_000_000)
    end

    private

    # A package holds files, directories and links; the platform refuses one with anything else in it.
    def drop_unpackable
      system("find", @app, "(", "-type", "p", "-o", "-type", "s", ")", "-delete", exception: true)
    end

    # All files bear the time of the commit: the same for the same source, and newer for a newer one,
    # so that what browsers hold of an earlier release is not taken for current.
    def commit_time = File.binread(@source, MTIME_DIGITS, MTIME_OFFSET).to_i(8)

    # Attributes are the platform's: it refuses setuid, and the owner is always the application's user.
    def pack
      tar = ["tar", "--create", "--file=-", "--directory", File.dirname(@app), "--format=gnu", "--sort=name",
             "--owner=1000", "--group=1000", "--numeric-owner", "--mtime=@#{commit_time}", "--mode=u+rwX,ug-s,-t",
             File.basename(@app)]
      zstd = %w[zstd --quiet -3 -T0 --stdout]
      reader, writer = IO.pipe
      packing = spawn(*tar, out: writer)
      writer.close
      squeezing = File.open(@output, "w") { |output| spawn(*zstd, in: reader, out: output) }
      reader.close
      done = [packing, squeezing].map { |pid| Process.wait2(pid).last }
      raise Failure, "the package could not be written (disk full, or over its limit)" unless done.all?(&:success?)
    end
  end
end
