# frozen_string_literal: true

# repack.rb OUT SOURCES : turns every gem that is installed here as a Debian package back into a .gem
# file, and writes the static index of them to OUT.
#
# Debian lays a gem out in one of two ways:
#   as a gem:  .../rubygems-integration/{all,ABI}/gems/NAME-VERSION/, its .so files below extensions/
#   as vendor: its code in vendor_ruby, mixed with that of others; the gemspec lists upstream's files
#
# A gem with a C extension becomes a source gem, compiled at `bundle install`, when SOURCES has its
# source tree, else a precompiled one, tied to this Ruby's minor version.

require "fileutils"
require "rubygems"
require "rubygems/package"
require "tmpdir"
require_relative "static_index"

ABI = RbConfig::CONFIG["ruby_version"]
MINOR = ABI[/\A\d+\.\d+/]
PLATFORM = "#{RbConfig::CONFIG["host_cpu"]}-linux"
VENDOR = "/usr/lib/ruby/vendor_ruby"
VENDOR_ARCH = RbConfig::CONFIG["vendorarchdir"]

# The distribution's questions about its packages.
module Dpkg
  module_function

  def run(*command) = IO.popen(command, err: File::NULL, &:read)
  def owner(path) = run("dpkg", "-S", path)[/\A([^:,]+)/, 1]
  def files(package) = (@files ||= {})[package] ||= run("dpkg", "-L", package).lines(chomp: true).select { File.file?(_1) }
  def source(package) = (@source ||= {})[package] ||= run("dpkg-query", "-W", "-f", "${source:Package}", package)
end

# One installed gem on its way to a .gem file.
class InstalledGem
  # Parts of Ruby, of Debian's tools, or without code of their own.
  SKIPPED = %w[bundler rubygems-update rails-deprecated_sanitizer gem2deb did_you_mean].freeze
  # Makes "use the system's library" the default, as Debian's own build does by flags.
  PATCHES = {
    "nokogiri" => ["ext/nokogiri/extconf.rb", 'ENV.key?("NOKOGIRI_USE_SYSTEM_LIBRARIES")', "true"]
  }.freeze
  # Their source tree has the gemspec that fits it; the installed one is that of the copy within Ruby.
  OWN_GEMSPEC = %w[racc].freeze
  # Directories of a source tree that a gem needs.
  SOURCE_DIRS = %w[lib ext bin exe gumbo-parser/src gumbo-parser/include patches data].freeze
  SOURCE_FILES = "{README*,LICENSE*,COPYING*,dependencies.yml,VERSION,*.yml}"
  # What upstream lists and a running gem does not need.
  UNNEEDED = %r{\A(?:tests?|spec|features|examples?|docs?|java|ext|\.git|t|man|benchmarks?|gemfiles|ci)/}

  def self.all = Gem::Specification.reject { |spec| spec.default_gem? || SKIPPED.include?(spec.name) }.sort_by(&:full_name)

  def initialize(installed, sources, alone_in_package:)
    @installed = installed
    @sources = sources
    @package = Dpkg.owner(installed.loaded_from)
    @alone = alone_in_package[@package]
    @spec = installed.dup
  end

  # Writes the gem into `out`; returns [name, version, platform, how it was made].
  def write(out)
    Dir.mktmpdir("repack") do |dir|
      @dir = dir
      how = source_tree ? gather_source : gather_installed
      put_placeholder if everything("*").empty?
      build(out)
      [@spec.name, @spec.version, @spec.platform, how]
    end
  end

  private

  def everything(pattern) = Dir.glob("**/#{pattern}", File::FNM_DOTMATCH, base: @dir).select { File.file?("#{@dir}/#{_1}") }
  def gem_dir = @installed.full_gem_path
  def laid_out_as_gem? = File.directory?(gem_dir) && Dir.glob("#{gem_dir}/**/*").any? { File.file?(_1) }
  def native? = shared_objects.any? || @installed.extensions.any? || OWN_GEMSPEC.include?(@installed.name)

  def source_tree
    return @source_tree if defined?(@source_tree)

    tree = "#{@sources}/#{OWN_GEMSPEC.include?(@installed.name) ? @installed.name : Dpkg.source(@package)}"
    usable = native? && (File.exist?("#{tree}/#{@installed.name}.gemspec") || Dir.glob("#{tree}/ext/**/extconf.rb").any?)
    @source_tree = usable ? tree : nil
  end

  # Compiled files as Debian ships them: path below lib/ => file.
  def shared_objects
    @shared_objects ||= begin
      found = below(@installed.extension_dir)
      if !laid_out_as_gem?
        prefix = "#{VENDOR_ARCH}/"
        Dpkg.files(@package).each { |file| found[file.delete_prefix(prefix)] = file if file.start_with?(prefix) && file.end_with?(".so") }
      else
        found.merge!(below("#{gem_dir}/lib"))
      end
      if found.empty? && @installed.extensions.any? # gems bundled with Ruby
        marker = "/#{@installed.full_name}/"
        Dir.glob("/usr/lib/*/ruby/gems/#{ABI}/extensions/*/*#{marker}**/*.so") { |file| found[file.split(marker, 2).last] = file }
      end
      found
    end
  end

  def below(dir) = Dir.glob("**/*.so", base: dir).to_h { |file| [file, "#{dir}/#{file}"] }

  def put(name, from)
    target = "#{@dir}/#{name}"
    return if File.exist?(target) || !File.file?(from)

    FileUtils.mkdir_p(File.dirname(target))
    FileUtils.cp(from, target) # follows symlinks: Debian links to files of other packages
    File.chmod(File.executable?(from) ? 0o755 : 0o644, target)
  end

  def put_tree(from, prefix = "")
    Dir.glob("**/*", File::FNM_DOTMATCH, base: from) { |file| put("#{prefix}#{file}", "#{from}/#{file}") }
  end

  def put_vendored
    Dpkg.files(@package).each { |file| put("lib/#{file.delete_prefix("#{VENDOR}/")}", file) if file.start_with?("#{VENDOR}/") }
  end

  def gather_source
    own = OWN_GEMSPEC.include?(@installed.name)
    put_tree(gem_dir) if laid_out_as_gem? && !own # for files that are generated at Debian's build
    SOURCE_DIRS.each { |name| put_tree("#{source_tree}/#{name}", "#{name}/") }
    Dir.glob(SOURCE_FILES, base: source_tree) { |file| put(file, "#{source_tree}/#{file}") }
    put_vendored unless laid_out_as_gem?
    everything("*.{so,o,java,class,jar}").each { |file| FileUtils.rm("#{@dir}/#{file}") }
    @spec = Dir.chdir(source_tree) { Gem::Specification.load("#{@installed.name}.gemspec") } if own
    patch
    @spec.extensions = Dir.glob("ext/**/extconf.rb", base: @dir).grep_v(%r{/(?:java|jruby)/}) if @spec.extensions.empty?
    @spec.extensions = @spec.extensions.select { |file| File.exist?("#{@dir}/#{file}") }
    @spec.platform = "ruby"
    "source"
  end

  def patch
    file, from, to = PATCHES[@spec.name]
    return unless file

    text = File.read("#{@dir}/#{file}")
    abort "#{@spec.name}: #{file} no longer holds #{from}: mend the patch in repack.rb" unless text.include?(from)
    File.write("#{@dir}/#{file}", text.sub(from, to))
  end

  def gather_installed
    laid_out_as_gem? ? put_tree(gem_dir) : gather_vendored
    @installed.executables.each { |name| put("#{@installed.bindir}/#{name}", "/usr/bin/#{name}") }
    return "pure" unless native?

    abort "#{@installed.full_name}: a C extension with neither source nor .so" if shared_objects.empty?
    shared_objects.each { |name, file| put("lib/#{name}", file) }
    FileUtils.rm_rf("#{@dir}/ext")
    @spec.extensions = []
    @spec.platform = PLATFORM
    @spec.required_ruby_version = [">= #{MINOR}", "< #{MINOR.succ}.dev"]
    "precompiled"
  end

  # Files of upstream's list, found where Debian put them.
  def gather_vendored
    put_vendored if @alone
    @installed.files.grep_v(UNNEEDED).each do |name|
      places = []
      places << "#{VENDOR}/#{name.delete_prefix("lib/")}" if name.start_with?("lib/")
      places << "/usr/bin/#{File.basename(name)}" if name.start_with?("bin/", "exe/")
      places.concat(Dpkg.files(@package).select { |file| file.end_with?("/#{name}") }) if name.include?("/")
      found = places.find { |place| File.file?(place) }
      put(name, found) if found
    end
  end

  # RubyGems takes no gem without files; `rails` is one that only depends.
  def put_placeholder = File.write("#{@dir}/README.md", "#{@spec.full_name}\n")

  def build(out)
    Dir.chdir(@dir) do
      @spec.files = everything("*").reject { |file| file.end_with?("gem_make.out", "mkmf.log") }.sort
      @spec.test_files = []
      @spec.extra_rdoc_files = []
      @spec.executables = @spec.executables.select { |name| File.file?("#{@spec.bindir}/#{name}") }
      @spec.rubygems_version = Gem::VERSION
      skip_validation = true
      Gem::DefaultUserInteraction.use_ui(Gem::SilentUI.new) { Gem::Package.build(@spec, skip_validation) }
      FileUtils.mv(@spec.file_name, "#{out}/gems/")
    end
  end
end

out, sources = ARGV.map { |path| File.expand_path(path) }
FileUtils.rm_rf(out)
FileUtils.mkdir_p("#{out}/gems")
installed = InstalledGem.all
alone = installed.group_by { |spec| Dpkg.owner(spec.loaded_from) }.transform_values(&:one?)
made = installed.map { |spec| InstalledGem.new(spec, sources, alone_in_package: alone).write(out) }.uniq { |name, version| [name, version] }
File.write("#{out}/made.tsv", made.map { |row| "#{row.join("\t")}\n" }.join)
StaticIndex.new(out).write
