# frozen_string_literal: true

require "etc"
require "fileutils"

module RubyBuild
  # The application's gems, in vendor/bundle. Those of the previous package are the start when they
  # were made on the same image; with an unchanged Gemfile.lock they are only checked.
  class Gems
    JOBS_MAX = 8
    RETRIES = 3
    # Bundler says it of every gem that is a part of Ruby, and means nothing by it.
    BUILT_IN = /is built in to Ruby, and can't be cached/

    # Also what `bundle exec` finds when the application runs.
    CONFIG = <<~YAML
      ---
      BUNDLE_DEPLOYMENT: "true"
      BUNDLE_PATH: "vendor/bundle"
      BUNDLE_WITHOUT: "development:test"
      BUNDLE_VERSION: "system"
    YAML

    def initialize(app:, cache:, stamp:, previous:)
      @app = app
      @cached = File.join(cache, "vendor/bundle")
      @stamp = stamp
      @previous = previous
    end

    def install
      FileUtils.mkdir_p(File.join(@app, ".bundle"))
      File.write(File.join(@app, ".bundle/config"), CONFIG)
      # A committed vendor/bundle was compiled for another system.
      FileUtils.rm_rf(bundle)
      reused = take_over
      return puts("       the gems of the last build are complete") if reused && unchanged? && complete?

      run_install
      Command.run("bundle", "clean", dir: @app) if reused
      drop_leftovers
    end

    private

    def bundle = File.join(@app, "vendor/bundle")
    def unchanged? = @previous.gems == @stamp.gems
    def complete? = Command.run("bundle", "check", dir: @app, hidden: //).ok?

    def take_over
      return false unless @previous&.base == @stamp.base && File.directory?(@cached)

      FileUtils.mkdir_p(File.dirname(bundle))
      system("cp", "--archive", "--reflink=auto", @cached, bundle, exception: true)
    end

    def run_install
      jobs = Etc.nprocessors.clamp(1, JOBS_MAX)
      result = Command.run("bundle", "install", "--jobs", jobs.to_s, "--retry", RETRIES.to_s,
                           dir: @app, hidden: BUILT_IN, env: { "MAKEFLAGS" => "-j#{jobs}", "BUNDLE_TIMEOUT" => "30" })
      raise Failure, reason(result) unless result.ok?
    end

    # Downloads, object files and logs of the compilation: nothing loads them, and the logs hold
    # temporary names that would make every package different.
    def drop_leftovers
      FileUtils.rm_rf(Dir.glob("#{bundle}/ruby/*/cache"))
      FileUtils.rm_f(Dir.glob("#{bundle}/ruby/*/{gems,bundler/gems}/*/ext/**/*.o"))
      FileUtils.rm_f(Dir.glob("#{bundle}/ruby/*/{gems,extensions}/**/{gem_make.out,mkmf.log}"))
    end

    def reason(result)
      common = Command.common_reason(result, "bundle install")
      return common if common

      broken = result.find(/An error occurred while installing (\S+) \(([^)]+)\)/)
      broken &&= "#{broken[1]} #{broken[2]}"
      if broken && result.find(/Failed to build gem native extension/)
        return disk_was_full? ? Failure::DISK_FULL : "native extension of #{broken} did not compile: the compiler's words are above"
      end

      known_reason(result) || (broken && "gem #{broken} could not be installed") ||
        "bundle install failed with status #{result.status.exitstatus}: Bundler's own words are above"
    end

    # A compiler that cannot write often says so only in the log of the extension.
    def disk_was_full?
      logs = Dir.glob("#{bundle}/ruby/*/{gems,extensions}/**/{gem_make.out,mkmf.log,compile.log}")
      logs.any? { |log| File.binread(log).match?(Command::DISK_FULL) }
    end

    def not_found(gem)
      "gem #{gem} not found in any source: check its name and version in the Gemfile, then run `bundle lock`"
    end

    def known_reason(result)
      case
      when (match = result.find(/Could not find gem '([^']+)'/)) then not_found(match[1])
      when (match = result.find(/Could not find (\S+?) in (?:any of the sources|rubygems|locally)/))
        not_found(match[1].delete_suffix(","))
      when (match = result.find(/Your bundle is locked to (\S+) \(([^)]+)\) from/))
        not_found("#{match[1]} #{match[2]}")
      when (match = result.find(/Your Ruby version is ([\d.]+), but your Gemfile specified (.+)/))
        "the Gemfile asks for Ruby #{match[2]}, the platform has #{match[1]}"
      when result.find(/Your bundle only supports platforms|add the current platform to the lockfile/)
        "Gemfile.lock lacks this platform: run `bundle lock --add-platform x86_64-linux`, then commit it"
      when result.find(/lockfile can't be updated|frozen mode|deployment mode|lockfile is (?:missing|corrupt)/)
        "Gemfile.lock is out of date: run `bundle install`, then commit it"
      when (match = result.find(/There was an error (?:parsing|while loading) `([^`']+)[`'](?:: (.*))?/))
        "#{match[1]} has an error#{": #{match[2]}" if match[2]}"
      when (match = result.find(/Failed to parse lockfile|invalid.*[Ll]ockfile|merge conflict/))
        "Gemfile.lock cannot be read: #{match[0]}"
      when (match = result.find(/Could not (?:reach host|fetch specs from|verify the SSL certificate for) (\S+)/)),
           (match = result.find(/Retrying .*due to error .*: (\S+)/))
        "the gem source cannot be reached: #{match[1]}"
      when result.find(/Git error: command|fatal: unable to access/) then "the git source of a gem cannot be fetched"
      end
    end
  end
end
