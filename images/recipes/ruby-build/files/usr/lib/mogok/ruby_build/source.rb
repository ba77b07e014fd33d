# frozen_string_literal: true

require "fileutils"

module RubyBuild
  # The application's source: unpacked into /app, and checked for what a Ruby build cannot do without.
  class Source
    def initialize(archive, app)
      @archive = archive
      @app = app
    end

    def unpack
      system("tar", "--extract", "--file", @archive, "--directory", @app, "--no-same-owner", exception: false) or
        raise Failure, "the source archive cannot be unpacked"
    end

    def check
      raise Failure, "no Gemfile in the top directory of the source" unless File.file?(path("Gemfile"))
      unless File.file?(path("Gemfile.lock"))
        raise Failure, "Gemfile.lock is missing: run `bundle install`, then commit it"
      end

      # Settings of somebody's own machine; they would overrule those of the build.
      return unless File.exist?(path(".bundle"))

      puts "       .bundle of the source is not used: the platform sets Bundler up"
      FileUtils.rm_rf(path(".bundle"))
    end

    def lockfile = Lockfile.new(File.read(path("Gemfile.lock"), encoding: "UTF-8").scrub("?"))

    private

    def path(name) = File.join(@app, name)
  end

  # The names in a Gemfile.lock. It is read, not evaluated.
  class Lockfile
    def initialize(text)
      # Locked gems are indented by four spaces, their dependencies by six.
      @gems = text.scan(/^ {4}([A-Za-z0-9_.-]+) \(/).flatten.uniq
    end

    def gem?(*names) = names.any? { |name| @gems.include?(name) }
  end
end
