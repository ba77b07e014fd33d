# frozen_string_literal: true

require "digest"
require "fileutils"
require "json"

module RubyBuild
  # What a package was built from. It travels in the package, so that the next build of the same
  # application knows what of it can be taken over.
  class Stamp
    FILE = ".mogok/build.json"

    attr_reader :base, :gems
    attr_accessor :assets

    def self.of(app)
      files = %w[Gemfile Gemfile.lock .ruby-version .tool-versions].map { |name| File.join(app, name) }
      gems = Digest::SHA256.new
      files.each { |file| gems << "#{file}\0" << (File.file?(file) ? File.binread(file) : "") << "\0" }
      new(base: base, gems: gems.hexdigest, assets: nil)
    end

    # Of the previous package; nil when there is none, or none that is understood.
    def self.read(dir)
      fields = JSON.parse(File.read(File.join(dir, FILE)))
      new(base: fields["base"], gems: fields["gems"], assets: fields["assets"])
    rescue SystemCallError, JSON::ParserError, TypeError, NoMethodError
      nil
    end

    # Compiled gems are tied to the interpreter and to the libraries of the image.
    def self.base
      image = File.file?("/etc/mogok-release") ? File.read("/etc/mogok-release")[/^RECIPE=(.*)/, 1] : nil
      "#{RUBY_ENGINE} #{RUBY_VERSION} #{RUBY_PLATFORM} image #{image}"
    end

    def initialize(base:, gems:, assets:)
      @base = base
      @gems = gems
      @assets = assets
    end

    def write(app)
      path = File.join(app, FILE)
      FileUtils.mkdir_p(File.dirname(path))
      File.write(path, "#{JSON.pretty_generate({ base: @base, gems: @gems, assets: @assets })}\n")
    end
  end
end
